//! Selection of one behavior by its name, with the environment variable `BRIDGE_BEHAVIOR`.

/// The name of the variable.
const VARIABLE: &str = "BRIDGE_BEHAVIOR";

/// Returns the value of the variable, or `None` if it is not set.
pub(super) fn variable() -> Option<String> {
    std::env::var(VARIABLE).ok()
}

/// Returns the selected names: the requested one, or all of them without a request.
///
/// # Errors
/// When no behavior has the requested name. The text lists all names.
pub(super) fn check<'a>(requested: Option<&str>, names: &[&'a str]) -> Result<Vec<&'a str>, String> {
    let Some(requested) = requested else { return Ok(names.to_vec()) };
    match names.iter().find(|name| **name == requested) {
        Some(name) => Ok(vec![*name]),
        None => {
            let list: String = names.iter().map(|name| format!("\n  {name}")).collect();
            Err(format!("{VARIABLE}: no behavior has the name {requested:?}; choose one of:{list}"))
        }
    }
}

#[test]
fn unknown_behavior_name_is_rejected_with_all_names() {
    let names = ["first", "second"];
    assert_eq!(check(None, &names), Ok(vec!["first", "second"]));
    assert_eq!(check(Some("second"), &names), Ok(vec!["second"]));
    for unknown in ["", "third", "seco"] {
        let error = check(Some(unknown), &names).unwrap_err();
        let expected =
            format!("BRIDGE_BEHAVIOR: no behavior has the name {unknown:?}; choose one of:\n  first\n  second");
        assert_eq!(error, expected);
    }
}
