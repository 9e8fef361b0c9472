//! Mistakes in a file: where they are and what to write instead.

use policy::{Fault, Kind, Layer};

fn error_of(text: &str, kind: Kind) -> String {
    Layer::parse("p.toml", text, kind).unwrap_err().to_string()
}

fn error(text: &str) -> String {
    error_of(text, Kind::Administrator)
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest() {
    assert_eq!(
        error("[resources]\ncpu_max = 1\n memroy_mb_max = 2\n"),
        "p.toml:3:2: there is no key \"memroy_mb_max\"; did you mean \"memory_mb_max\"?"
    );
    assert_eq!(
        error("[images]\nx = 1\n"),
        "p.toml:2:1: there is no key \"x\"; there are: allow, deny"
    );
    assert_eq!(
        error("[mount]\n"),
        "p.toml:1:2: there is no section \"mount\"; did you mean \"mounts\"?"
    );
}

#[test]
fn a_key_in_the_wrong_place_is_told_the_right_one() {
    assert_eq!(
        error("cpu_max = 1\n"),
        "p.toml:1:1: there is no section \"cpu_max\"; it belongs in [resources]"
    );
    assert_eq!(
        error("[images]\nroots = []\n"),
        "p.toml:2:1: there is no key \"roots\"; it belongs in [mounts]"
    );
    assert!(error("[mounts]\nnever = []\n").contains("no key \"never\""));
    assert!(error("[policy.resources]\ncpu_max = 1\n").contains("no section \"policy\""));
}

#[test]
fn a_wrong_type_is_answered_with_an_example() {
    assert_eq!(
        error("[resources]\nmemory_mb_max = \"4G\"\n"),
        "p.toml:2:17: memory_mb_max is a string; write a whole number of MiB, such as 4096"
    );
    assert!(error("[resources]\ncpu_max = 1.5\n").contains("cpu_max is a fraction"));
    assert!(error("[resources]\ncpu_max = -1\n").contains("it is not a whole number of CPUs"));
    assert!(
        error("[images]\nallow = \"x\"\n").contains("allow is a string; write a list of strings")
    );
    assert!(error("[images]\nallow = [1]\n").contains("2:10: allow is a number"));
    assert!(error("[images]\nallow = [[\"x\"]]\n").contains("allow is a list; write a string"));
    assert!(error("[commands]\nallow = [[1]]\n").contains("write a word"));
    assert!(error("resources = 1\n").contains("resources is a number; write a section"));
    assert!(error("[grant]\nroles = []\n").contains("[[grant]]"));
    assert!(error("[mounts]\nread_only = \"yes\"\n").contains("write true or false"));
}

#[test]
fn a_value_that_cannot_be_is_answered_with_those_that_can() {
    assert!(
        error("[network]\nmodes = [\"online\"]\n")
            .contains("not one of offline, fetch, allow, open")
    );
    assert!(error("[isolation]\nminimum = \"kvm\"\n").contains("not one of process, emulated, vm"));
    assert!(
        error("[[grant]]\nroles = [\"admin\"]\n")
            .contains("not one of viewer, member, owner, administrator")
    );
    assert!(error("[mounts]\nroots = [\"src\"]\n").contains("write `/…` or `~/…`"));
    assert!(error("[mounts]\ndeny = [\"*.{pem,key}\"]\n").contains("`*` is the only wildcard"));
    assert!(error("[commands]\ndeny = [\"git ** x\"]\n").contains("the last one"));
    assert!(error("[commands]\ndeny = [\"git 'x\"]\n").contains("not closed"));
    assert!(error("[[grant]]\ncpu_max = 1\n").contains("for whom"));
}

#[test]
fn only_what_is_denied_by_default_can_be_excepted() {
    assert!(error("[mounts]\nexcept = [\".envv\"]\n").contains("did you mean \".env\"?"));
    assert!(error("[mounts]\nexcept = [\"docker.sock\"]\n").contains("never shown to a guest"));
}

#[test]
fn a_project_cannot_widen() {
    for text in [
        "[[grant]]\nroles = [\"member\"]\n",
        "[[policy.grant]]\nroles = [\"member\"]\n",
        "[mounts]\nexcept = [\".env\"]\n",
        "[policy.mounts]\nexcept = [\".env\"]\n",
    ] {
        assert!(error_of(text, Kind::Project).contains("a project can only narrow"), "{text}");
    }
}

#[test]
fn a_projects_file_may_be_about_other_things() {
    for text in
        ["", "[run]\nimage = \"x\"\n", "[run]\n[policy]\n[policy.images]\nallow = []\n", "[dev]\n"]
    {
        Layer::parse("sandforge.toml", text, Kind::Project).unwrap();
    }
    // It is meant for us, and would not be heard.
    for text in ["[run]\n[images]\n", "[polciy]\n", "[image]\nallow = []\n", "policy = 1\n"] {
        assert!(Layer::parse("sandforge.toml", text, Kind::Project).is_err(), "{text}");
    }
}

#[test]
fn what_is_no_toml_has_a_place_too() {
    let error = Layer::parse("p.toml", "[images]\nallow = [\n", Kind::Administrator).unwrap_err();
    assert!(matches!(error.fault, Fault::Syntax(_)));
    assert!(error.line >= 2, "{error}");
    assert!(self::error("[images]\n[images]\n").contains("p.toml:2:"));
    assert!(self::error("a\u{7}b").contains("not TOML"));
}

#[test]
fn there_is_an_end_to_a_file() {
    let long = " ".repeat(Layer::MAX_TEXT + 1);
    assert!(error(&long).contains("longer than"));
    let many = format!("[env]\nallow = [{}]\n", "\"a\",".repeat(2001));
    assert!(error(&many).contains("more than 2000 patterns"));
    let deep = format!("a = {}", "[".repeat(50_000));
    assert!(error(&deep).contains("not TOML"));
}

#[test]
fn columns_are_characters() {
    assert!(error("[images]\nallow = [\"äöü\", 1]\n").starts_with("p.toml:2:17: "));
}

#[test]
fn a_wrong_line_about_the_network_is_told_with_its_place() {
    let text = "[network]\nallow = [\n  \"READ a.com\",\n  \"reed a.com\",\n]";
    let error = Layer::parse("p.toml", text, Kind::Administrator).unwrap_err();
    let said = "p.toml:4:3: network: there is no verb \"reed\"; did you mean \"READ\"?";
    assert_eq!(error.to_string(), said);
}
