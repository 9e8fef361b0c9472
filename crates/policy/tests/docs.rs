//! What `docs/policy.md` shows is what is read.

use policy::{Kind, Layer};

const PAGE: &str = include_str!("../../../docs/policy.md");

fn blocks() -> Vec<&'static str> {
    let behind_fences = PAGE.split("```toml\n").skip(1);
    behind_fences.map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
fn every_block_of_the_documentation_is_a_policy() {
    assert!(blocks().len() >= 9);
    for block in blocks() {
        let kind = if block.contains("[policy.") { Kind::Project } else { Kind::Administrator };
        Layer::parse("docs/policy.md", block, kind)
            .unwrap_or_else(|error| panic!("{error}\n{block}"));
    }
}

#[test]
fn every_key_is_in_the_documentation() {
    // The answer to a key that is nowhere near is all that there are.
    let sections = ["resources", "images", "mounts", "commands", "env", "network", "isolation"];
    let texts = sections.map(|section| format!("[{section}]\n_________________ = 1\n"));
    for text in texts.iter().map(String::as_str).chain(["[[grant]]\n_________________ = 1\n"]) {
        let error = Layer::parse("x", text, Kind::Administrator).unwrap_err().to_string();
        let (_, keys) = error.split_once("there are: ").unwrap();
        for key in keys.split(", ") {
            let shown = blocks()
                .iter()
                .any(|block| block.lines().any(|line| line.starts_with(&format!("{key} ="))));
            assert!(shown, "{key}");
        }
    }
}
