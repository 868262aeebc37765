//! The table of kubeconfigs.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::certificates::{Identity, pem};
use crate::support::control_plane::ADMIN_TOKEN;

/// What the variants are made of.
pub(crate) struct Material {
    /// URL of the API server.
    pub(crate) server: String,
    /// `host:port` of `kubectl proxy`, which serves http and authenticates by itself.
    pub(crate) proxy: String,
    /// The certificates that the API server presents for its address: its own, then that of its issuer.
    pub(crate) chain: [String; 2],
    /// The issuer of the certificate for `api.test`, and that certificate.
    pub(crate) named: [String; 2],
    /// The certificate for `self.test`: self-signed, and marked as an authority.
    pub(crate) self_signed: String,
    /// The certificate for `old.test`, which has expired.
    pub(crate) expired: String,
    pub(crate) client: Identity,
    pub(crate) client_of_version_1: Identity,
    pub(crate) client_with_chain: Identity,
    pub(crate) expired_client: Identity,
}

/// One kubeconfig.
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    /// The bytes of the file.
    pub(crate) bytes: Vec<u8>,
    /// Further files beside it.
    pub(crate) files: Vec<(&'static str, String)>,
    /// What the error of the bridge contains; empty if the kubeconfig works.
    pub(crate) refusal: &'static str,
}

impl Variant {
    fn works(name: &'static str, text: impl Into<Vec<u8>>) -> Variant {
        Variant::refused(name, "", text)
    }

    fn refused(name: &'static str, refusal: &'static str, text: impl Into<Vec<u8>>) -> Variant {
        Variant { name, bytes: text.into(), files: Vec::new(), refusal }
    }

    fn file(mut self, name: &'static str, text: &str) -> Variant {
        self.files.push((name, text.to_owned()));
        self
    }
}

/// A kubeconfig with these fields in its cluster and its user.
fn config(cluster: &Value, user: &Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "home",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "home", "context": {"cluster": "c", "user": "u"}}],
    })
    .to_string()
}

fn base64(text: &str) -> String {
    STANDARD.encode(text)
}

/// Base64 in lines of 76 characters.
fn wrapped(text: &str, line_end: &str) -> String {
    let base64 = base64(text);
    let lines: Vec<_> = base64.as_bytes().chunks(76).map(String::from_utf8_lossy).collect();
    lines.join(line_end) + line_end
}

/// Adds fields to a mapping. Null removes a field.
fn with(base: &Value, fields: &Value) -> Value {
    let mut result = base.clone();
    for (field, value) in fields.as_object().unwrap() {
        match value {
            Value::Null => drop(result.as_object_mut().unwrap().remove(field)),
            value => result[field] = value.clone(),
        }
    }
    result
}

/// A user with a plugin.
fn plugin(script: &str, more: &Value) -> Value {
    let exec = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "sh",
        "args": ["-c", script],
        "interactiveMode": "Never",
    });
    json!({ "exec": with(&exec, more) })
}

/// A script that prints an ExecCredential with this status.
fn prints(status: &Value) -> String {
    let credential =
        json!({"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": status});
    format!("cat <<'END'\n{credential}\nEND\n")
}

pub(crate) fn all(m: &Material) -> Vec<Variant> {
    let mut variants = certificate_authorities(m);
    variants.extend(server_names(m));
    variants.extend(servers(m));
    variants.extend(tokens(m));
    variants.extend(client_certificates(m));
    variants.extend(client_certificate_errors(m));
    variants.extend(plugins(m));
    variants.extend(plugin_errors(m));
    variants.extend(impersonation(m));
    variants.extend(documents(m));
    variants.extend(document_errors(m));
    variants
}

fn cluster(m: &Material) -> Value {
    json!({"server": m.server, "certificate-authority-data": base64(&m.chain.concat())})
}

fn user() -> Value {
    json!({"token": ADMIN_TOKEN})
}

fn certificate_authorities(m: &Material) -> Vec<Variant> {
    let chain = m.chain.concat();
    let with_ca = |fields: Value| config(&with(&json!({"server": m.server}), &fields), &user());
    let data = |text: &str| with_ca(json!({"certificate-authority-data": text}));
    let yaml = |field: &str| {
        format!(
            "clusters:\n- name: c\n  cluster:\n    server: {}\n    certificate-authority-data: {field}\nusers:\n- name: u\n  \
             user:\n    token: {ADMIN_TOKEN}\ncontexts:\n- name: home\n  context:\n    cluster: c\n    user: u\n\
             current-context: home\n",
            m.server
        )
    };
    let block = |mark: &str, text: &str| yaml(&format!("{mark}\n{text}").trim_end().replace('\n', "\n      "));
    let base = base64(&chain);
    let unpadded = base64(&format!("{chain}{}", &"\n\n\n"[..(4 - chain.len() % 3) % 3]));
    let noise =
        format!("Issuer: text before it\n{}\n-----BEGIN JUNK-----\nAAAA\n-----END JUNK-----\n{chain}", m.named[0]);
    vec![
        Variant::works("ca data on one line", yaml(&base)),
        Variant::works("ca data wrapped after |", block("|", &wrapped(&chain, "\n"))),
        Variant::works("ca data that ends in a newline", data(&format!("{base}\n"))),
        Variant::works("ca data wrapped in quotes", data(&wrapped(&chain, "\n"))),
        Variant::works("ca data wrapped with CRLF", data(&wrapped(&chain, "\r\n"))),
        Variant::refused(
            "ca data wrapped after >",
            "cluster `c`: certificate-authority-data",
            block(">", &wrapped(&chain, "\n")),
        ),
        Variant::refused(
            "ca data wrapped without a mark",
            "cluster `c`: certificate-authority-data",
            block("", &wrapped(&chain, "\n")),
        ),
        Variant::refused("ca data with spaces", "cluster `c`: certificate-authority-data", data(&format!("{base} "))),
        Variant::refused("ca data that is not base64", "cluster `c`: certificate-authority-data", data("?!")),
        Variant::refused("ca data that is PEM", "cluster `c`: certificate-authority-data", data(&chain)),
        Variant::refused(
            "ca data without padding",
            "cluster `c`: certificate-authority-data",
            data(unpadded.trim_end_matches('=')),
        ),
        Variant::refused(
            "ca data without a certificate",
            "cluster `c`: certificate-authority-data",
            data(&base64("none\n")),
        ),
        Variant::refused(
            "ca data that is a number",
            "cluster `c`: certificate-authority-data",
            with_ca(json!({"certificate-authority-data": 7})),
        ),
        Variant::works(
            "empty ca data beside a file",
            with_ca(json!({"certificate-authority-data": "", "certificate-authority": "ca.crt"})),
        )
        .file("ca.crt", &chain),
        Variant::works(
            "null ca data beside a file",
            with_ca(json!({"certificate-authority": "./ca.crt"})).replacen(
                "\"server\"",
                "\"certificate-authority-data\":null,\"server\"",
                1,
            ),
        )
        .file("ca.crt", &chain),
        Variant::works("ca file in a folder", with_ca(json!({"certificate-authority": "pki/ca.crt"})))
            .file("pki/ca.crt", &chain),
        Variant::refused(
            "ca data and a file",
            "cluster `c`: certificate-authority",
            with_ca(json!({"certificate-authority-data": base, "certificate-authority": "ca.crt"})),
        )
        .file("ca.crt", &chain),
        Variant::refused(
            "ca file that is missing",
            "cluster `c`: certificate-authority",
            with_ca(json!({"certificate-authority": "ca.crt"})),
        ),
        Variant::refused(
            "ca file that is empty",
            "cluster `c`: certificate-authority",
            with_ca(json!({"certificate-authority": "ca.crt"})),
        )
        .file("ca.crt", ""),
        Variant::works("several authorities with text between them", data(&base64(&noise))),
        Variant::works("the issuer alone as ca", data(&base64(&m.chain[1]))),
        Variant::works("the server's own certificate as ca", data(&base64(&m.chain[0]))),
        Variant::refused("another authority", "certificate-authority-data", data(&base64(&m.named[0]))),
        Variant::refused("no authority", "certificate-authority-data", with_ca(json!({}))),
        Variant::works("insecure", with_ca(json!({"insecure-skip-tls-verify": true}))),
        Variant::works(
            "insecure beside an empty ca",
            with_ca(
                json!({"insecure-skip-tls-verify": true, "certificate-authority-data": "", "certificate-authority": ""}),
            ),
        ),
        Variant::works("insecure in the words of YAML 1.1", yaml("\"\"\n    insecure-skip-tls-verify: yes")),
        Variant::refused(
            "insecure as a text",
            "cluster `c`: insecure-skip-tls-verify",
            with_ca(json!({"insecure-skip-tls-verify": "true"})),
        ),
        Variant::refused(
            "insecure beside a ca",
            "cluster `c`: insecure-skip-tls-verify",
            with_ca(json!({"insecure-skip-tls-verify": true, "certificate-authority-data": base})),
        ),
    ]
}

fn server_names(m: &Material) -> Vec<Variant> {
    let named = |name: &str, authority: &str| {
        config(
            &json!({"server": m.server, "tls-server-name": name, "certificate-authority-data": base64(authority)}),
            &user(),
        )
    };
    vec![
        Variant::works("an empty tls-server-name", named("", &m.chain.concat())),
        Variant::works("tls-server-name with an address", named("127.0.0.1", &m.chain.concat())),
        Variant::works("tls-server-name of another certificate", named("api.test", &m.named[0])),
        Variant::works("tls-server-name and the server's own certificate", named("api.test", &m.named[1])),
        Variant::works("a self-signed authority that is the server", named("self.test", &m.self_signed)),
        // The certificate for this name is the default one.
        Variant::refused(
            "tls-server-name that the certificate does not have",
            "name",
            named("other.test", &m.chain.concat()),
        ),
        Variant::refused("the server's own certificate with another name", "name", named("other.test", &m.chain[0])),
        Variant::refused(
            "tls-server-name that is no name",
            "cluster `c`: tls-server-name",
            named("a b", &m.chain.concat()),
        ),
        Variant::refused("an expired certificate as ca", "certificate", named("old.test", &m.expired)),
    ]
}

fn servers(m: &Material) -> Vec<Variant> {
    let server = |server: &str| config(&with(&cluster(m), &json!({"server": server})), &user());
    let plain = |server: &str, user: &Value| config(&json!({"server": server}), user);
    let address = m.server.strip_prefix("https://").unwrap();
    let port = address.rsplit(':').next().unwrap();
    vec![
        Variant::works("server with a slash", server(&format!("{}/", m.server))),
        Variant::works("server with upper case", server(&format!("HTTPS://{address}"))),
        Variant::works("server with a query and a fragment", server(&format!("{}/?a=b#c", m.server))),
        Variant::refused(
            "server with a name that the certificate does not have",
            "name",
            server(&format!("https://localhost:{port}")),
        ),
        Variant::works("server without a scheme", plain(&m.proxy, &json!({}))),
        Variant::works("server without a scheme, with a slash", plain(&format!("{}/", m.proxy), &json!({}))),
        Variant::works("server with http", plain(&format!("http://{}", m.proxy), &json!({}))),
        Variant::works(
            "http server and credentials, which are not sent",
            plain(&m.proxy, &json!({"token": "wrong\ntoken"})),
        ),
        Variant::works("http server and a plugin, which does not run", plain(&m.proxy, &plugin("exit 1", &json!({})))),
        Variant::works(
            "http server and a ca that is not used",
            config(&json!({"server": m.proxy, "certificate-authority-data": base64("none")}), &user()),
        ),
        Variant::refused("server without a scheme that expects https", "server", server(address)),
        Variant::refused(
            "server without a scheme, with a path",
            "cluster `c`: server",
            plain(&format!("{}/x", m.proxy), &json!({})),
        ),
        Variant::refused(
            "server with credentials",
            "cluster `c`: server",
            server(&format!("https://name:word@{address}")),
        ),
        Variant::refused("server with another scheme", "cluster `c`: server", server(&format!("ftp://{address}"))),
        Variant::refused("server with two schemes", "cluster `c`: server", server(&format!("https://{}", m.server))),
        Variant::refused("server with a newline", "cluster `c`: server", server(&format!("{}\n", m.server))),
        Variant::refused("server with a space", "cluster `c`: server", server(&format!(" {}", m.server))),
        Variant::refused("server with a port that is none", "cluster `c`: server", server("https://127.0.0.1:99999")),
        Variant::refused("server with half an IPv6 address", "cluster `c`: server", server("https://[::1:6443")),
        Variant::refused("empty server", "cluster `c`: server", server("")),
        Variant::refused(
            "no server",
            "cluster `c`: server",
            config(&with(&cluster(m), &json!({"server": null})), &user()),
        ),
        Variant::refused(
            "proxy-url of nothing",
            "cluster `c`: proxy-url",
            config(&with(&cluster(m), &json!({"proxy-url": "http://127.0.0.1:1"})), &user()),
        ),
        Variant::works("empty proxy-url", config(&with(&cluster(m), &json!({"proxy-url": ""})), &user())),
    ]
}

fn tokens(m: &Material) -> Vec<Variant> {
    let user = |user: Value| config(&cluster(m), &user);
    let file = |user: Value, content: &str| Variant::works("", config(&cluster(m), &user)).file("token", content);
    let name = |name: &'static str, variant: Variant| Variant { name, ..variant };
    let refused = |name: &'static str, variant: Variant| Variant { name, refusal: "user `u`: tokenFile", ..variant };
    let beside = json!({"token": ADMIN_TOKEN, "client-certificate-data": "", "client-key-data": ""});
    vec![
        Variant::works("token", user(json!({"token": ADMIN_TOKEN}))),
        Variant::works("empty client certificate beside a token", user(beside)),
        Variant::works(
            "null client certificate beside a token",
            user(json!({"token": ADMIN_TOKEN}))
                .replacen("\"token\"", "\"client-certificate-data\":null,\"client-key-data\":~,\"token\"", 1)
                .replace('~', "null"),
        ),
        Variant::works("token with a space after it", user(json!({"token": format!("{ADMIN_TOKEN} ")}))),
        Variant::refused(
            "token that ends in a newline",
            "user `u`: token",
            user(json!({"token": format!("{ADMIN_TOKEN}\n")})),
        ),
        Variant::refused("token that is a number", "user `u`: token", user(json!({"token": 12345}))),
        Variant::refused("token that is a list", "user `u`: token", user(json!({"token": [ADMIN_TOKEN]}))),
        Variant::refused("wrong token", "credentials", user(json!({"token": "wrong"}))),
        Variant::refused("no credentials", "403", user(json!({}))),
        Variant::refused(
            "token and password",
            "user `u`: token",
            user(json!({"token": ADMIN_TOKEN, "username": "a", "password": "b"})),
        ),
        Variant::refused(
            "password, which no API server accepts",
            "403",
            user(json!({"username": "a", "password": "b"})),
        ),
        name("tokenFile", file(json!({"tokenFile": "token"}), ADMIN_TOKEN)),
        name("tokenFile that ends in a newline", file(json!({"tokenFile": "./token"}), &format!("{ADMIN_TOKEN}\n"))),
        name("tokenFile with white space", file(json!({"tokenFile": "token"}), &format!("\r\n {ADMIN_TOKEN}\r\n\n"))),
        name("tokenFile beside an empty token", file(json!({"tokenFile": "token", "token": ""}), ADMIN_TOKEN)),
        name("tokenFile beside a wrong token", file(json!({"tokenFile": "token", "token": "wrong"}), ADMIN_TOKEN)),
        Variant::works("missing tokenFile beside a token", user(json!({"tokenFile": "none", "token": ADMIN_TOKEN}))),
        refused("tokenFile that is empty", file(json!({"tokenFile": "token"}), "\n")),
        refused(
            "tokenFile with two lines",
            file(json!({"tokenFile": "token"}), &format!("{ADMIN_TOKEN}\n{ADMIN_TOKEN}")),
        ),
        Variant::refused("tokenFile that is missing", "user `u`: tokenFile", user(json!({"tokenFile": "none"}))),
        Variant::refused(
            "auth-provider that kubectl has no more",
            "user `u`: auth-provider",
            user(json!({"auth-provider": {"name": "gcp", "config": {}}})),
        ),
    ]
}

fn client_certificates(m: &Material) -> Vec<Variant> {
    let user = |certificate: &str, key: &str| {
        config(&cluster(m), &json!({"client-certificate-data": certificate, "client-key-data": key}))
    };
    let Identity { certificate, key } = &m.client;
    let both = format!("{key}{certificate}");
    let pkcs8 = STANDARD.decode(key.lines().filter(|line| !line.starts_with('-')).collect::<String>()).unwrap();
    let files = json!({"client-certificate": "client.crt", "client-key": "client.key"});
    let data = json!({"client-certificate-data": base64(certificate), "client-key": "client.key"});
    let [v1, chain] = [&m.client_of_version_1, &m.client_with_chain];
    let key_alone = json!({"token": ADMIN_TOKEN, "client-key-data": base64(key)});
    let not_run = with(
        &plugin("exit 1", &json!({})),
        &json!({"client-certificate-data": base64(certificate), "client-key-data": base64(key)}),
    );
    vec![
        Variant::works("client certificate", user(&base64(certificate), &base64(key))),
        Variant::works("client certificate and key, wrapped", user(&wrapped(certificate, "\n"), &wrapped(key, "\n"))),
        Variant::works(
            "client certificate and key that end in a newline",
            user(&format!("{}\n", base64(certificate)), &format!("{}\r\n", base64(key))),
        ),
        Variant::works("client certificate files", config(&cluster(m), &files))
            .file("client.crt", certificate)
            .file("client.key", key),
        Variant::works(
            "client certificate files beside empty data",
            config(&cluster(m), &with(&files, &json!({"client-certificate-data": "", "client-key-data": ""}))),
        )
        .file("client.crt", certificate)
        .file("client.key", key),
        Variant::works("client certificate data and a key file", config(&cluster(m), &data)).file("client.key", key),
        Variant::works("client certificate and key in one text", user(&base64(&both), &base64(&both))),
        Variant::works("key with another label", user(&base64(certificate), &base64(&pem("EC PRIVATE KEY", &pkcs8)))),
        Variant::works("client certificate with its issuer", user(&base64(&chain.certificate), &base64(&chain.key))),
        Variant::works("client certificate of X.509 version 1", user(&base64(&v1.certificate), &base64(&v1.key))),
        Variant::works("client key without a certificate beside a token", config(&cluster(m), &key_alone)),
        Variant::works("client certificate beside a plugin, which does not run", config(&cluster(m), &not_run)),
    ]
}

fn client_certificate_errors(m: &Material) -> Vec<Variant> {
    let user = |user: Value| config(&cluster(m), &user);
    let pair = |certificate: &str, key: &str| {
        user(json!({"client-certificate-data": base64(certificate), "client-key-data": base64(key)}))
    };
    let Identity { certificate, key } = &m.client;
    let (v1, expired) = (&m.client_of_version_1, &m.expired_client);
    vec![
        Variant::refused("client certificate without a key", "user `u`: client-key-data", user(json!({"client-certificate-data": base64(certificate)}))),
        Variant::refused("client certificate with another key", "user `u`: client-key-data", pair(certificate, &v1.key)),
        Variant::refused("client certificate of version 1 with another key", "user `u`: client-key-data", pair(&v1.certificate, key)),
        Variant::refused("client certificate that is none", "user `u`: client-certificate-data", pair("none", key)),
        Variant::refused("client key that is none", "user `u`: client-key-data", pair(certificate, "none")),
        Variant::refused("client key that is malformed", "user `u`: client-key-data", pair(certificate, &pem("PRIVATE KEY", &[0x30, 0]))),
        // RFC 5958, EncryptedPrivateKeyInfo: an algorithm and bytes.
        Variant::refused("client key that is encrypted", "user `u`: client-key-data", pair(certificate, &pem("ENCRYPTED PRIVATE KEY", &[0x30, 4, 0x30, 0, 4, 0]))),
        Variant::refused("client key that is not base64", "user `u`: client-key-data", user(json!({"client-certificate-data": base64(certificate), "client-key-data": "?!"}))),
        Variant::refused("client certificate that has expired", "credentials", pair(&expired.certificate, &expired.key)),
        Variant::refused("client certificate file that is missing", "user `u`: client-certificate", user(json!({"client-certificate": "none", "client-key-data": base64(key)}))),
        Variant::refused("client certificate twice", "user `u`: client-certificate", user(json!({"client-certificate-data": base64(certificate), "client-certificate": "client.crt", "client-key-data": base64(key)}))).file("client.crt", certificate),
        Variant::refused("client key twice", "user `u`: client-key", user(json!({"client-certificate-data": base64(certificate), "client-key": "client.key", "client-key-data": base64(key)}))).file("client.key", key),
    ]
}

fn plugins(m: &Material) -> Vec<Variant> {
    let exec = |script: &str, more: Value| config(&cluster(m), &plugin(script, &more));
    let token = prints(&json!({"token": ADMIN_TOKEN}));
    let certificate = json!({"clientCertificateData": m.client.certificate, "clientKeyData": m.client.key});
    let both = with(&certificate, &json!({"token": ADMIN_TOKEN}));
    let from_environment =
        prints(&json!({"token": "TOKEN"})).replace("'END'", "END").replace("TOKEN", "$WORD$NOTHING$NULL");
    let variables =
        json!([{"name": "WORD", "value": ADMIN_TOKEN}, {"name": "NOTHING"}, {"name": "NULL", "value": null}]);
    let info = format!("case $KUBERNETES_EXEC_INFO in *'\"server\":\"{}\"'*) {token};; esac", m.server);
    let info = info.replace(";; esac", "\n;; esac");
    let yaml = format!(
        "printf 'apiVersion: client.authentication.k8s.io/v1\\nkind: ExecCredential\\nstatus:\\n  token: {ADMIN_TOKEN}\\n'"
    );
    let relative = json!({"command": "./plugin.sh", "args": null});
    let beta = token.replace("k8s.io/v1", "k8s.io/v1beta1");
    let default_mode = json!({"apiVersion": "client.authentication.k8s.io/v1beta1", "interactiveMode": null});
    let unused = with(&plugin("exit 1", &json!({})), &json!({"token": ADMIN_TOKEN}));
    vec![
        Variant::works("plugin with a token", exec(&token, json!({}))),
        Variant::works(
            "plugin that may ask, without a terminal",
            exec(&token, json!({"interactiveMode": "IfAvailable"})),
        ),
        Variant::works(
            "plugin with environment entries without a value",
            exec(&from_environment, json!({"env": variables})),
        ),
        Variant::works("plugin with a null environment", exec(&token, json!({"env": []}))),
        Variant::works(
            "plugin with a token that has ended",
            exec(&prints(&json!({"token": ADMIN_TOKEN, "expirationTimestamp": "2020-01-01T00:00:00Z"})), json!({})),
        ),
        Variant::works("plugin with a certificate", exec(&prints(&certificate), json!({}))),
        Variant::works("plugin with a certificate and a token", exec(&prints(&both), json!({}))),
        Variant::works("plugin that prints YAML", exec(&yaml, json!({}))),
        Variant::works("plugin that gets the cluster", exec(&info, json!({"provideClusterInfo": true}))),
        Variant::works("plugin with a relative path", exec("", relative))
            .file("plugin.sh", &format!("#!/bin/sh\n{token}")),
        Variant::works("plugin of v1beta1 without interactiveMode", exec(&beta, default_mode)),
        Variant::works("plugin beside a token, which does not run", config(&cluster(m), &unused)),
    ]
}

fn plugin_errors(m: &Material) -> Vec<Variant> {
    let exec = |script: &str, more: Value| config(&cluster(m), &plugin(script, &more));
    let token = prints(&json!({"token": ADMIN_TOKEN}));
    let field =
        |name: &'static str, refusal: &'static str, more: Value| Variant::refused(name, refusal, exec(&token, more));
    let output = |name: &'static str, script: &str| Variant::refused(name, "user `u`: exec", exec(script, json!({})));
    let certificate = json!({"clientCertificateData": m.client.certificate});
    let mismatch = json!({"clientCertificateData": m.client.certificate, "clientKeyData": m.expired_client.key});
    let provider = json!({"auth-provider": {"name": "oidc", "config": {"id-token": "a"}}});
    let both = config(&cluster(m), &with(&plugin(&token, &json!({})), &provider));
    vec![
        field("plugin without a command", "user `u`: exec: command", json!({"command": null})),
        field("plugin that does not exist", "user `u`: exec", json!({"command": "no-such-plugin"})),
        field("plugin without apiVersion", "user `u`: exec: apiVersion", json!({"apiVersion": null})),
        field(
            "plugin of v1alpha1",
            "user `u`: exec: apiVersion",
            json!({"apiVersion": "client.authentication.k8s.io/v1alpha1"}),
        ),
        field("plugin without interactiveMode", "user `u`: exec: interactiveMode", json!({"interactiveMode": null})),
        field(
            "plugin with an unknown interactiveMode",
            "user `u`: exec: interactiveMode",
            json!({"interactiveMode": "never"}),
        ),
        field("plugin that needs a terminal", "user `u`: exec: interactiveMode", json!({"interactiveMode": "Always"})),
        field("plugin with a variable without a name", "user `u`: exec: env: name", json!({"env": [{"value": "a"}]})),
        field("plugin with a mapping as environment", "user `u`: exec: env", json!({"env": {"A": "b"}})),
        Variant::refused("plugin and auth-provider", "user `u`: auth-provider", both),
        output("plugin that fails", "exit 3"),
        output("plugin that prints nothing", "true"),
        output("plugin that prints another version", &token.replace("k8s.io/v1", "k8s.io/v1beta1")),
        output("plugin that prints another kind", &token.replace("ExecCredential", "Secret")),
        output("plugin that prints no status", &prints(&Value::Null)),
        output("plugin that prints an empty status", &prints(&json!({}))),
        output("plugin that prints only a certificate", &prints(&certificate)),
        output("plugin that prints another key", &prints(&mismatch)),
        output(
            "plugin that prints a wrong time",
            &prints(&json!({"token": ADMIN_TOKEN, "expirationTimestamp": "soon"})),
        ),
        output("plugin that prints a token with a newline", &prints(&json!({"token": format!("{ADMIN_TOKEN}\n")}))),
    ]
}

fn impersonation(m: &Material) -> Vec<Variant> {
    let user = |more: Value| config(&cluster(m), &with(&user(), &more));
    vec![
        Variant::works("as", user(json!({"as": "jane"}))),
        Variant::works("as with groups", user(json!({"as": "jane", "as-groups": ["dev", "system:masters"]}))),
        Variant::works(
            "as with uid and extra",
            user(json!({"as": "jane", "as-uid": "7", "as-user-extra": {"a.b/c d": ["1", "2"], "e": []}})),
        ),
        Variant::refused("groups without as", "user `u`: as-groups", user(json!({"as-groups": ["dev"]}))),
        Variant::refused("uid without as", "user `u`: as-uid", user(json!({"as-uid": "7"}))),
        Variant::refused("as with a newline", "user `u`: as", user(json!({"as": "jane\n"}))),
        Variant::refused(
            "groups that are a text",
            "user `u`: as-groups",
            user(json!({"as": "jane", "as-groups": "dev"})),
        ),
    ]
}

/// The kubeconfig that works, as YAML, with these lines at the end.
fn yaml(m: &Material, more: &str) -> String {
    let data = base64(&m.chain.concat());
    let server = &m.server;
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: home\nclusters:\n- name: c\n  cluster: {{server: '{server}', \
         certificate-authority-data: {data}}}\nusers:\n- name: u\n  user:\n    token: {ADMIN_TOKEN}\ncontexts:\n- name: \
         home\n  context:\n    cluster: c\n    user: u\n{more}"
    )
}

fn documents(m: &Material) -> Vec<Variant> {
    let utf16: Vec<u8> =
        [0xff, 0xfe].into_iter().chain(yaml(m, "").encode_utf16().flat_map(u16::to_le_bytes)).collect();
    let pretty: Value = serde_json::from_str(&config(&cluster(m), &user())).unwrap();
    let tabs = serde_json::to_string_pretty(&pretty).unwrap().replace("  ", "\t");
    let twice = |field: &str, wrong: &str| yaml(m, "").replacen(field, &format!("{wrong}\n{field}"), 1);
    let anchors =
        yaml(m, "- name: other\n  context: &context {cluster: c, user: u}\n- name: third\n  context: {<<: *context}\n");
    let text = yaml(m, "preferences: {}\nextensions:\n- name: a\nx-unknown: [1, {b: null}]\n");
    vec![
        Variant::works("YAML", yaml(m, "")),
        Variant::works("YAML with CRLF", yaml(m, "").replace('\n', "\r\n")),
        Variant::works("UTF-8 with a byte order mark", format!("\u{feff}{}", yaml(m, ""))),
        Variant::works("UTF-16 with a byte order mark", utf16),
        Variant::works("JSON with tabs", tabs),
        Variant::works("no apiVersion and no kind", yaml(m, "").replacen("apiVersion: v1\nkind: Config\n", "", 1)),
        Variant::works(
            "doubled key in a context that is not used",
            yaml(m, "- name: other\n  context: {cluster: c, cluster: d, user: u}\n"),
        ),
        Variant::works("doubled key: the last one counts", twice("    cluster: c\n", "    cluster: none")),
        Variant::works("doubled key of the document", twice("current-context: home", "current-context: none")),
        Variant::works("anchors and merge keys", anchors),
        Variant::works("unknown fields, null lists and an extension without content", text),
        Variant::works("a second document that is broken", yaml(m, "---\n{{{\n")),
        Variant::works("comments and a document mark", format!("# text\n---\n{}...\n", yaml(m, ""))),
        Variant::works("entries that are null or empty", yaml(m, "- name: other\n- name: third\n  context: null\n")),
        Variant::works(
            "a context with a namespace that is no name",
            yaml(m, "").replacen("    user: u\n", "    user: u\n    namespace: A_B\n", 1),
        ),
    ]
}

fn document_errors(m: &Material) -> Vec<Variant> {
    let context = |context: &str| yaml(m, "").replacen("  context:\n    cluster: c\n    user: u\n", context, 1);
    let replaced = |from: &str, to: &str| yaml(m, "").replacen(from, to, 1);
    vec![
        Variant::refused("empty file", "current context", ""),
        Variant::refused("text that is not YAML", "line 1", "{{{"),
        Variant::refused("a list", "expected a mapping", "[a]"),
        Variant::refused("a text", "expected a mapping", "kubeconfig"),
        Variant::refused("half a character", "cannot parse", [yaml(m, "# ").as_bytes(), b"\xff\n"].concat()),
        Variant::refused("another kind", "kind", replaced("kind: Config", "kind: Pod")),
        Variant::refused("another apiVersion", "apiVersion", replaced("apiVersion: v1", "apiVersion: v2")),
        Variant::refused("a name that is a number", "name", yaml(m, "- name: 7\n  context: {cluster: c}\n")),
        Variant::refused(
            "two contexts of one name",
            "context `home`",
            yaml(m, "- name: home\n  context: {cluster: c, user: u}\n"),
        ),
        Variant::refused(
            "wrong type in a context that is not used",
            "context `other`: cluster",
            yaml(m, "- name: other\n  context: {cluster: [c]}\n"),
        ),
        Variant::refused("wrong type of a list", "clusters", "clusters: {c: {server: a}}"),
        Variant::refused("no current context", "current context", replaced("current-context: home\n", "")),
        Variant::refused(
            "a current context that does not exist",
            "`none`",
            replaced("current-context: home", "current-context: none"),
        ),
        Variant::refused(
            "a context without a cluster",
            "context `home`: cluster",
            context("  context:\n    user: u\n"),
        ),
        Variant::refused(
            "a context with a cluster that does not exist",
            "context `home`: cluster",
            context("  context: {cluster: none, user: u}\n"),
        ),
        Variant::refused("a context without content", "context `home`: cluster", context("")),
        // kubectl asks for a user name, and ends because it has no terminal.
        Variant::refused(
            "a context with a user that does not exist",
            "403",
            context("  context: {cluster: c, user: none}\n"),
        ),
        Variant::refused(
            "a cluster without content",
            "cluster `c`: server",
            replaced("  cluster: {server", "  other: {server"),
        ),
    ]
}
