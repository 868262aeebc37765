//! Mutated kubeconfigs: none causes a panic, and no error contains a secret.

use std::{fs, path::Path, sync::LazyLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Request;
use kube::client::Body;

use super::{
    super::{
        api_service::address,
        contents::Contents,
        kubeconfig::Kubeconfig,
        target::{Authorization, Target, Trust},
    },
    full_text,
};
use crate::test_support::{ReplayCommand, SeededRng, seeds_to_run};

/// Mutated kubeconfigs of one seed.
const CASES: u64 = 1000;
/// Seeds of the short form: 10,000 kubeconfigs.
const SHORT: u64 = 10;
/// Seeds of the long form: 1,000,000 kubeconfigs.
const LONG: u64 = 1000;

/// A part of each secret.
const SECRET: &str = "canary";

/// Values that a field, a key or a line is replaced by.
const VALUES: &[&str] = &[
    "",
    "~",
    "null",
    "true",
    "yes",
    "7",
    "-1",
    "1e400",
    ".nan",
    "0x1f",
    "''",
    "\"\"",
    "[]",
    "{}",
    "[a, 1, null]",
    "{a: b}",
    "127.0.0.1:8001",
    "https://",
    "https://[::1",
    "http://[]:1",
    "https://a:99999",
    "//a",
    "https://a b",
    "https://a:b@c",
    "https://ä",
    "https://127.0.0.1:6443/%zz",
    "https://a/\\",
    ":",
    "::",
    "?",
    "@",
    "a\\nb",
    "\"a\\nb\"",
    "\"\\0\"",
    "\"\\ud800\"",
    "|\n      a\n      b",
    ">\n      a\n      b",
    "'a",
    "&a b",
    "*a",
    "*none",
    "!!binary YQ==",
    "!!int a",
    "! a",
    "<<",
    "<<: *a",
    "- - -",
    "? a",
    "---",
    "...",
    "%YAML 9.9",
    "\u{feff}",
    "\u{0}",
    "\u{85}",
    "\u{2028}",
    "\t",
    "ca.crt",
    "client.crt",
    "client.key",
    "token",
    ".",
    "/",
    "../none",
    "Config",
    "v1",
    "home",
    "away",
    "oidc",
    "Never",
    "Always",
    "client.authentication.k8s.io/v1beta1",
    "YQ==",
    "YQ",
    "LS0tLS1CRUdJTi",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

/// The kubeconfigs that are mutated, and the files beside them.
struct Material {
    folder: tempfile::TempDir,
    texts: Vec<String>,
}

static MATERIAL: LazyLock<Material> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("ca.crt", &certificate), ("client.crt", &certificate), ("client.key", &key)] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    fs::write(folder.path().join("token"), "canary-in-a-file\n").unwrap();
    let [certificate, key] = [certificate, key].map(|text| STANDARD.encode(text));
    let block = format!(
        "apiVersion: v1\nkind: Config\npreferences: {{}}\ncurrent-context: home\nclusters:\n- name: c\n  cluster:\n    server: \
         https://127.0.0.1:6443/prefix\n    certificate-authority-data: {certificate}\n    tls-server-name: localhost\n    \
         extensions:\n    - name: client.authentication.k8s.io/exec\n      extension: {{a: 1}}\n- name: d\n  cluster: {{server: \
         'http://127.0.0.1:1', insecure-skip-tls-verify: false, disable-compression: true}}\ncontexts:\n- name: home\n  \
         context:\n    cluster: c\n    user: u\n    namespace: bh\n- name: away\n  context: {{cluster: d, user: v}}\nusers:\n- \
         name: u\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n    as: jane\n    as-uid: \
         '7'\n    as-groups: [dev, ops]\n    as-user-extra:\n      a.b/c: [x, y]\n- name: v\n  user:\n    token: canary-token\n"
    );
    let files = "current-context: home\nclusters:\n- name: c\n  cluster: &c\n    server: https://localhost\n    \
                 certificate-authority: ca.crt\n    proxy-url: ''\n- name: d\n  cluster:\n    <<: *c\n    \
                 insecure-skip-tls-verify: no\ncontexts:\n- {name: home, context: {cluster: c, user: u}}\n- {name: away, \
                 context: {cluster: d, user: v}}\nusers:\n- name: u\n  user:\n    tokenFile: token\n    client-certificate: \
                 client.crt\n    client-key: client.key\n- name: v\n  user:\n    username: admin\n    password: canary-word\n";
    let plugin = "current-context: home\nclusters:\n- name: c\n  cluster:\n    server: HTTPS://[::1]:6443\n    \
                  insecure-skip-tls-verify: true\ncontexts:\n- name: home\n  context:\n    cluster: c\n    user: u\nusers:\n- \
                  name: u\n  user:\n    exec:\n      apiVersion: client.authentication.k8s.io/v1\n      command: \
                  ./plugin\n      args: [--token, canary-argument]\n      env:\n      - name: TOKEN\n        value: \
                  canary-variable\n      - name: EMPTY\n      interactiveMode: Never\n      provideClusterInfo: true\n      \
                  installHint: install it\n- name: v\n  user:\n    auth-provider:\n      name: oidc\n      config:\n        \
                  id-token: canary-token\n        idp-issuer-url: https://a\n";
    let json = serde_json::json!({
        "kind": "Config", "apiVersion": "v1", "current-context": "home",
        "clusters": [{"name": "c", "cluster": {"server": "localhost:8001", "certificate-authority-data": certificate}}],
        "contexts": [{"name": "home", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "canary-token", "tokenFile": "token"}}],
    });
    let texts = vec![block, files.to_owned(), plugin.to_owned(), serde_json::to_string_pretty(&json).unwrap()];
    Material { folder, texts }
});

fn long_form() -> bool {
    std::env::var("BRIDGE_TESTS").is_ok_and(|tests| tests == "full")
}

/// Returns a kubeconfig with one to three mutations.
fn mutated(rng: &mut SeededRng) -> Vec<u8> {
    let texts = &MATERIAL.texts;
    let mut text = rng.choose(texts).clone();
    for _ in 0..=rng.below(3) {
        mutate(&mut text, rng);
    }
    let mut bytes = match rng.below(40) {
        0 => [0xff, 0xfe].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect(),
        1 => [0xfe, 0xff].into_iter().chain(text.encode_utf16().flat_map(u16::to_be_bytes)).collect(),
        2 => [&[0xef, 0xbb, 0xbf], text.as_bytes()].concat(),
        _ => text.into_bytes(),
    };
    if rng.below(20) == 0 {
        mutate_bytes(&mut bytes, rng);
    }
    bytes
}

fn mutate(text: &mut String, rng: &mut SeededRng) {
    let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let at = index(rng, lines.len());
    let other = index(rng, lines.len());
    let value = *rng.choose(VALUES);
    match rng.below(24) {
        0..2 => {
            let key = lines[at].find(": ").map_or(0, |colon| colon + 2);
            lines[at].replace_range(key.., value);
        }
        // In quotes, so that the document and the types stay valid.
        12..18 => {
            if let Some(colon) = lines[at].find(": ") {
                lines[at].replace_range(colon + 2.., &format!("{value:?}"));
            }
        }
        2 | 18.. => mutate_encoded(&mut lines, rng),
        3 => drop(lines.remove(at)),
        4 => lines.insert(other, lines[at].clone()),
        5 => lines.swap(at, other),
        6 => lines[at] = format!("{}{}", &"        "[..index(rng, 9)], lines[at].trim_start()),
        7 => lines[at].push_str(value),
        8 => lines.insert(at, value.to_owned()),
        9 => {
            let texts = &MATERIAL.texts;
            let from: Vec<&str> = rng.choose(texts).split('\n').collect();
            lines[at] = from[index(rng, from.len())].to_owned();
        }
        _ => {
            let mut chars: Vec<char> = lines[at].chars().collect();
            let position = index(rng, chars.len() + 1);
            let new = *rng.choose(&[
                ':',
                '{',
                '}',
                '[',
                ']',
                '\'',
                '"',
                '#',
                '&',
                '*',
                '!',
                '|',
                '>',
                '%',
                '-',
                '\\',
                '\u{7f}',
                'ä',
                '\u{10ffff}',
            ]);
            match rng.below(3) {
                0 => chars.insert(position, new),
                1 => chars.truncate(position),
                _ => chars.splice(position..chars.len().min(position + 3), [new]).for_each(drop),
            }
            lines[at] = chars.into_iter().collect();
        }
    }
    *text = lines.join("\n");
}

/// Changes the PEM text in a field with base64, so that the bytes below it are reached.
fn mutate_encoded(lines: &mut [String], rng: &mut SeededRng) {
    let encoded: Vec<&mut String> = lines.iter_mut().filter(|line| line.contains("-data: ")).collect();
    let count = encoded.len();
    let Some(line) = encoded.into_iter().nth(index(rng, count.max(1))) else { return };
    let value = line.find(": ").map_or(0, |colon| colon + 2);
    let Ok(mut pem) = STANDARD.decode(&line[value..]) else { return };
    if rng.below(2) == 0 {
        mutate_bytes(&mut pem, rng);
    } else if let Some((label, mut der)) = decode_pem(&pem) {
        mutate_bytes(&mut der, rng);
        pem = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der)).into_bytes();
    }
    line.replace_range(value.., &STANDARD.encode(pem));
}

fn decode_pem(pem: &[u8]) -> Option<(String, Vec<u8>)> {
    let text = std::str::from_utf8(pem).ok()?;
    let (label, rest) = text.strip_prefix("-----BEGIN ")?.split_once("-----")?;
    let base64: String = rest.split("-----").next()?.split_whitespace().collect();
    Some((label.to_owned(), STANDARD.decode(base64).ok()?))
}

fn mutate_bytes(bytes: &mut Vec<u8>, rng: &mut SeededRng) {
    for _ in 0..=rng.below(3) {
        let at = index(rng, bytes.len() + 1);
        let value = rng.below(256) as u8;
        match rng.below(4) {
            0 => bytes.insert(at, value),
            1 => bytes.truncate(at),
            _ if at < bytes.len() => bytes[at] = value,
            _ => bytes.push(value),
        }
    }
}

fn index(rng: &mut SeededRng, length: usize) -> usize {
    rng.below(length.max(1) as u64) as usize
}

/// Does everything that [`super::super::connect`] and a request do, except the connection. Returns the texts of errors, and
/// adds the contexts for which a request was built to `reached`.
fn evaluate(bytes: &[u8], folder: &Path, reached: &mut u64) -> Vec<String> {
    let config = match Kubeconfig::parse(bytes, folder) {
        Ok(config) => config,
        Err(error) => return vec![full_text(&error.in_file(Path::new("config")))],
    };
    let mut errors = Vec::new();
    for wanted in [None, Some("away")] {
        let evaluated = config.context_name(wanted).map_err(|error| full_text(&error)).and_then(|context| {
            let target = config.cluster_and_user(&context).and_then(|(cluster, user)| Target::new(&cluster, &user));
            target.map_err(|error| error.to_string())
        });
        match evaluated {
            Ok(target) => {
                *reached += 1;
                errors.extend(request(&target));
            }
            Err(error) => errors.push(error),
        }
    }
    errors
}

fn request(target: &Target) -> Vec<String> {
    let (contents, error) = Contents::read_again(target, &Contents::default());
    let mut errors: Vec<String> = error.into_iter().map(|error| error.to_string()).collect();
    assert!(target.warnings.iter().all(|warning| !warning.contains(SECRET)), "{:?}", target.warnings);
    // The certificates of the system are not mutated, and they take long to read.
    if !target.tls.as_ref().is_some_and(|tls| matches!(tls.trust, Trust::System { .. })) {
        errors.extend(contents.client_config(target, None).err().map(|error| error.to_string()));
    }
    let get = Request::get("/api/v1/pods?limit=1").body(Body::empty()).unwrap();
    errors.extend(address(target, get, contents.authorization).err().map(|error| error.to_string()));
    if let Authorization::Plugin(plugin) = &target.authorization {
        let info = plugin.exec_info(contents.authority.as_deref());
        assert_eq!(info["kind"], "ExecCredential");
    }
    errors
}

#[test]
fn mutated_kubeconfig_causes_no_panic_and_no_error_with_a_secret() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let seeds = seeds_to_run(0..if long_form() { LONG } else { SHORT });
    let (mut reached, mut cases) = (0, 0_u64);
    for seed in seeds {
        let _hint = ReplayCommand::on_panic(crate::test_name!(), seed);
        let mut rng = SeededRng(seed);
        for case in 0..CASES {
            let bytes = mutated(&mut rng);
            let errors = evaluate(&bytes, MATERIAL.folder.path(), &mut reached);
            let leak = errors.iter().find(|error| error.contains(SECRET));
            assert_eq!(leak, None, "case {case}: {}", String::from_utf8_lossy(&bytes));
            cases += 1;
        }
    }
    println!("{cases} mutated kubeconfigs; requests of {reached} contexts were built");
    assert!(reached >= cases / 5, "expected requests of at least {} contexts: {reached}", cases / 5);
}

#[test]
fn mutated_output_of_a_plugin_causes_no_panic_and_no_error_with_a_secret() {
    let text = &MATERIAL.texts[2];
    let config = Kubeconfig::parse(text.as_bytes(), MATERIAL.folder.path()).ok().unwrap();
    let (cluster, user) = config.cluster_and_user("home").unwrap();
    let target = Target::new(&cluster, &user).ok().unwrap();
    let Authorization::Plugin(plugin) = &target.authorization else { panic!("expected a plugin") };
    let status = serde_json::json!({
        "token": "canary", "clientCertificateData": "canary", "clientKeyData": "canary",
        "expirationTimestamp": "2026-01-01T00:00:00Z",
    });
    let credential = serde_json::json!({
        "kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": status,
    });
    let printed = serde_json::to_string_pretty(&credential).unwrap();
    for seed in seeds_to_run(0..if long_form() { LONG } else { SHORT }) {
        let _hint = ReplayCommand::on_panic(crate::test_name!(), seed);
        let mut rng = SeededRng(seed);
        for _ in 0..100 {
            let mut text = printed.clone();
            for _ in 0..=rng.below(3) {
                mutate(&mut text, &mut rng);
            }
            if let Err(error) = plugin.parse(text.as_bytes()) {
                assert!(!error.contains(SECRET), "{error}: {text}");
            }
        }
    }
}
