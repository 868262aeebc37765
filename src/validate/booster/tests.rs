use super::*;

#[test]
fn embedded_default_requires_a_payload() {
    let embedded = Booster::default();
    assert!(embedded.examine(b"{}").is_ok() && embedded.examine(b"0").is_ok());
    assert!(embedded.examine(b"").is_err() && embedded.examine(b" \n").is_err());
    assert_eq!(Booster::load(&vec![0; MAX_MODULE_BYTES + 1]).unwrap_err(), BoosterError::TooLong);
}

#[cfg(not(feature = "wasm"))]
#[test]
fn binary_without_the_feature_says_so() {
    let error = Booster::load(b"\0asm\x01\0\0\0").unwrap_err();
    assert_eq!(error, BoosterError::NoFeature);
    assert!(error.to_string().contains("without the feature `wasm`"));
}

#[cfg(feature = "wasm")]
mod wasm {
    use std::time::{Duration, Instant};

    use super::*;

    /// The longest time that a call may take in a build without optimization. An optimized build takes a twentieth.
    const MAX_CALL: Duration = Duration::from_secs(20);

    /// A module that accepts payloads that begin with `{` and have at least two bytes, after it has read all of it.
    const REAL: &str = r#"(module (memory (export "memory") 1)
        (func (export "validate") (param $ptr i32) (param $len i32) (result i32) (local $at i32) (local $sum i32)
            (if (i32.lt_u (local.get $len) (i32.const 2)) (then (return (i32.const 0))))
            (block $end (loop $next
                (br_if $end (i32.ge_u (local.get $at) (local.get $len)))
                (local.set $sum (i32.add (local.get $sum)
                    (i32.load8_u (i32.add (local.get $ptr) (local.get $at)))))
                (local.set $at (i32.add (local.get $at) (i32.const 1)))
                (br $next)))
            (i32.and (i32.ne (local.get $sum) (i32.const 0))
                (i32.eq (i32.load8_u (local.get $ptr)) (i32.const 123)))))"#;

    fn load(text: &str) -> Result<Booster, BoosterError> {
        Booster::load(&wat::parse_str(text).unwrap_or_else(|error| panic!("{text}: {error}")))
    }

    /// A module with this body of `validate`, and these further fields.
    fn with_body(fields: &str, body: &str) -> String {
        format!(
            r#"(module (memory (export "memory") 1) {fields}
            (func $v (export "validate") (param i32 i32) (result i32) {body}))"#
        )
    }

    #[test]
    fn real_module_accepts_and_refuses_and_gets_a_fresh_instance() {
        let booster = load(REAL).unwrap();
        assert_eq!(booster.examine(b"{}"), Ok(()));
        assert_eq!(booster.examine(b"[]"), Err("the module refused the payload"));
        assert_eq!(booster.examine(b""), Err("the module refused the payload"));
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(256 << 10));
        assert_eq!(booster.examine(large.as_bytes()), Ok(()));
        let counter = with_body(
            "(global $n (mut i32) (i32.const 0))",
            "(global.set $n (i32.add (global.get $n) (i32.const 1))) (i32.eq (global.get $n) (i32.const 1))",
        );
        let booster = load(&counter).unwrap();
        for _ in 0..3 {
            assert_eq!(booster.examine(b"{}"), Ok(()), "no state is left from the call before");
        }
        let negative = load(&with_body("", "(i32.const -7)")).unwrap();
        assert_eq!(negative.examine(b"{}"), Ok(()), "every value but 0 means valid");
        let at_old_end = load(&with_body("", "(i32.eq (local.get 0) (i32.const 65536))")).unwrap();
        assert_eq!(at_old_end.examine(b"{}"), Ok(()), "the payload is at the old end of the memory");
    }

    /// Modules that do not fit are refused at start.
    #[test]
    fn unfit_modules_are_refused_at_start() {
        let validate = r#"(func (export "validate") (param i32 i32) (result i32) (i32.const 1))"#;
        let memory = r#"(memory (export "memory") 1)"#;
        for (name, module) in [
            ("no exports", "(module)".to_owned()),
            ("no memory", format!("(module {validate})")),
            ("memory that is not exported", format!("(module (memory 1) {validate})")),
            ("no validate", format!("(module {memory})")),
            ("validate is a global", format!(r#"(module {memory} (global (export "validate") i32 (i32.const 1)))"#)),
            ("memory is a function", format!(r#"(module (func (export "memory")) {validate})"#)),
            (
                "one parameter",
                format!(r#"(module {memory} (func (export "validate") (param i32) (result i32) (i32.const 1)))"#),
            ),
            (
                "64-bit result",
                format!(r#"(module {memory} (func (export "validate") (param i32 i32) (result i64) (i64.const 1)))"#),
            ),
            ("no result", format!(r#"(module {memory} (func (export "validate") (param i32 i32)))"#)),
            ("imports a function", format!(r#"(module (import "env" "f" (func)) {memory} {validate})"#)),
            (
                "imports WASI",
                format!(r#"(module (import "wasi_snapshot_preview1" "fd_write" (func)) {memory} {validate})"#),
            ),
            (
                "imports its memory",
                format!(r#"(module (import "env" "memory" (memory 1)) (export "memory" (memory 0)) {validate})"#),
            ),
            ("too much memory", format!(r#"(module (memory (export "memory") 65536) {validate})"#)),
            ("too large a table", format!(r#"(module {memory} (table 100000000 funcref) {validate})"#)),
            ("start loops", format!("(module {memory} (func $s (loop (br 0))) (start $s) {validate})")),
            ("start traps", format!("(module {memory} (func $s unreachable) (start $s) {validate})")),
            ("data out of bounds", format!(r#"(module {memory} (data (i32.const 65536) "x") {validate})"#)),
            ("64-bit memory", format!(r#"(module (memory (export "memory") i64 1) {validate})"#)),
        ] {
            let start = Instant::now();
            let error = load(&module).expect_err(name);
            assert!(matches!(error, BoosterError::Unfit(_)), "{name}: {error}");
            assert!(start.elapsed() < MAX_CALL, "{name}");
        }
        let real = wat::parse_str(REAL).unwrap();
        for (name, bytes) in [
            ("empty", &b""[..]),
            ("text", REAL.as_bytes()),
            ("JSON", b"{}"),
            ("only a header", b"\0asm"),
            ("another version", b"\0asm\x09\0\0\0"),
            ("cut", &real[..real.len() - 3]),
        ] {
            assert!(matches!(Booster::load(bytes), Err(BoosterError::Unfit(_))), "{name}");
        }
    }

    /// Modules that fit and then misbehave: each call ends as a refusal, within its budget.
    #[test]
    fn hostile_modules_are_contained() {
        let grow_all = "(loop (drop (memory.grow (i32.const 16))) (br 0)) (i32.const 1)";
        let hostile = [
            ("loops", with_body("", "(loop (br 0)) (i32.const 1)")),
            ("loops over memory", with_body("", "(loop (i32.store (i32.const 0) (i32.const 1)) (br 0)) (i32.const 1)")),
            (
                "fills its memory again and again",
                with_body(
                    "",
                    "(loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536)) (br 0)) (i32.const 1)",
                ),
            ),
            (
                "copies its memory again and again",
                with_body(
                    "",
                    "(loop (memory.copy (i32.const 0) (i32.const 1) (i32.const 65535)) (br 0)) (i32.const 1)",
                ),
            ),
            ("grows its memory without end", with_body("", grow_all)),
            (
                "requires growth",
                with_body(
                    "",
                    "(if (i32.eq (memory.grow (i32.const 10000)) (i32.const -1)) (then unreachable)) (i32.const 1)",
                ),
            ),
            (
                "grows its table",
                with_body(
                    "(table $t 1 funcref)",
                    "(loop (drop (table.grow $t (ref.null func) (i32.const 1000))) (br 0)) (i32.const 1)",
                ),
            ),
            ("calls itself", with_body("", "(call $v (local.get 0) (local.get 1))")),
            (
                "calls itself with many locals",
                with_body(
                    "",
                    "(local i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64) (call $v (local.get 0) (local.get 1))",
                ),
            ),
            (
                "calls itself through a table",
                with_body(
                    "(table funcref (elem $v)) (type $f (func (param i32 i32) (result i32)))",
                    "(call_indirect (type $f) (local.get 0) (local.get 1) (i32.const 0))",
                ),
            ),
            (
                "calls a null",
                with_body("(table 1 funcref) (type $f (func (result i32)))", "(call_indirect (type $f) (i32.const 0))"),
            ),
            (
                "calls another type",
                with_body(
                    "(func $g) (table funcref (elem $g)) (type $f (func (result i32)))",
                    "(call_indirect (type $f) (i32.const 0))",
                ),
            ),
            ("traps", with_body("", "unreachable")),
            ("divides by zero", with_body("", "(i32.div_u (i32.const 1) (i32.const 0))")),
            ("overflows a division", with_body("", "(i32.div_s (i32.const 0x80000000) (i32.const -1))")),
            ("converts a NaN", with_body("", "(i32.trunc_f64_s (f64.const nan))")),
            ("reads beyond its memory", with_body("", "(i32.load (i32.const -4))")),
            ("reads far beyond its memory", with_body("", "(i32.load offset=4294967295 (i32.const -1))")),
            (
                "writes beyond its memory",
                with_body("", "(i64.store (i32.const 0x7ffffff9) (i64.const 1)) (i32.const 1)"),
            ),
            (
                "has the maximum memory and no room for the payload",
                r#"(module (memory (export "memory") 1 1)
                (func (export "validate") (param i32 i32) (result i32) (i32.const 1)))"#
                    .to_owned(),
            ),
            ("returns 0", with_body("", "(i32.const 0)")),
            (
                "overwrites the payload and refuses",
                with_body("", "(memory.fill (local.get 0) (i32.const 0) (local.get 1)) (i32.load8_u (local.get 0))"),
            ),
        ];
        assert!(hostile.len() >= 20);
        let payload = br#"{"region":null}"#;
        for (name, module) in hostile {
            let booster = load(&module).unwrap_or_else(|error| panic!("{name}: {error}"));
            let start = Instant::now();
            for _ in 0..2 {
                booster.examine(payload).expect_err(name);
            }
            let elapsed = start.elapsed() / 2;
            println!("{name}: {elapsed:?}");
            assert!(elapsed < MAX_CALL, "{name} took {elapsed:?}");
            assert!(load(REAL).unwrap().examine(payload).is_ok(), "another module still works");
        }
    }

    /// Prints what a validation costs: `cargo test --lib --features wasm -- --nocapture throughput`.
    #[test]
    fn throughput_of_the_embedded_default_and_of_a_module() {
        let payload = br#"{"region":"eu","metrics":{"ttl":1,"opn":2,"rt1Ms":1.5,"rt5Ms":null,"p50Ms":0,"p90Ms":3,"requests":4,"errors":5,"bytes":6}}"#;
        for (name, booster, calls) in [("embedded", Booster::default(), 100_000), ("module", load(REAL).unwrap(), 300)]
        {
            let start = Instant::now();
            for _ in 0..calls {
                std::hint::black_box(booster.examine(std::hint::black_box(payload))).unwrap();
            }
            let each = start.elapsed() / calls;
            println!(
                "{name}: {each:?} for each payload of {} bytes, {:.0} payloads a second",
                payload.len(),
                1.0 / each.as_secs_f64()
            );
        }
    }
}
