//! Lines for the shell against a denial, in the first line of the input: nothing panics, and words
//! that need no quotes are found wherever a command can stand.
#![no_main]

use libfuzzer_sys::fuzz_target;
use policy::{Command, Decision, Exec, Host, Kind, Layer, Policy, Request, Role, Subject};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (pattern, line) = text.split_once('\n').unwrap_or((&text, ""));
    if let Some(policy) = denying(&serde_json::to_string(pattern).expect("it is a string")) {
        check(&decide(&policy, Command::Shell(line.to_owned())));
        let argv = line.split(' ').map(str::to_owned).collect();
        check(&decide(&policy, Command::Argv(argv)));
    }
    find(pattern);
});

/// A policy that denies this and no more, where it is a pattern.
fn denying(toml: &str) -> Option<Policy> {
    let text = format!("[commands]\ndeny = [{toml}]\n");
    let layer = Layer::parse("p.toml", &text, Kind::Administrator).ok()?;
    Some(Policy::new(Host::default(), vec![layer]).expect("no path is in it"))
}

fn decide(policy: &Policy, command: Command) -> Decision {
    let who = Subject { name: "ci".to_owned(), role: Role::Member, workspace: None };
    policy.decide(&Request::Exec(Exec { who, command, user: None, env_names: Vec::new() }))
}

fn check(decision: &Decision) {
    let told = decision.to_string();
    assert!(!told.contains(|char: char| char.is_control() && char != '\n'), "{told:?}");
}

fn find(words: &str) {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "-./, ".contains(char);
    // In front of a redirection a number is a descriptor, and words of the language are no program.
    let is_program = |word: &str| {
        word.len() > 9
            && !word.contains('/')
            && word.starts_with(|char: char| char.is_ascii_alphanumeric())
    };
    if !words.chars().all(is_plain) || !words.split(' ').next().is_some_and(is_program) {
        return;
    }
    let quoted: Vec<String> = words
        .split(' ')
        .filter(|word| !word.is_empty())
        .map(|word| format!("\"{word}\""))
        .collect();
    let Some(policy) = denying(&format!("[{}]", quoted.join(","))) else { return };
    for line in [
        words.to_owned(),
        quoted.join(" "),
        format!("a;{words}"),
        format!("a && {words} || b"),
        format!("(a; {words})"),
        format!("if a; then {words}; fi"),
        format!("echo \"a $({words}) b\" c"),
        format!("echo `{words}`"),
        format!("A=1 {words} >x 2>&1"),
        format!("cat <<E\ndon't\nE\n{words}"),
        format!("env A=1 sh -c '{words}'"),
        format!("eval {words}"),
    ] {
        let decision = decide(&policy, Command::Shell(line.clone()));
        assert!(!decision.allowed, "{line}");
    }
}
