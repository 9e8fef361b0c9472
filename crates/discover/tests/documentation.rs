//! Every line of the page about network rules.

use discover::Discovery;
use rules::{Layer, Line};

const PAGE: &str = include_str!("../../../docs/network.md");

/// Blocks of a language.
fn blocks(language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in PAGE.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(name)) if name == language => open = Some(String::new()),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.push_str(line);
                block.push('\n');
            }
            _ => {}
        }
    }
    blocks
}

#[test]
fn every_line_of_the_table_is_a_rule() {
    let rows: Vec<&str> = PAGE.lines().filter_map(|line| line.strip_prefix("| `")).collect();
    assert!(rows.len() >= 20, "{}", rows.len());
    for row in rows {
        let (line, meaning) = row.split_once('`').unwrap();
        let others = meaning.split('`').skip(1).step_by(2).filter(|text| text.starts_with("tcp "));
        for text in std::iter::once(line).chain(others) {
            let read = Line::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(read.to_string(), text);
        }
    }
}

#[test]
fn every_file_on_the_page_is_one() {
    let service = services::Catalogue::built_in().sample("github").unwrap().clone();
    let files = blocks("toml");
    assert_eq!(files.len(), 4);
    for text in files {
        match text.starts_with("[[registry]]") {
            true => {
                let read = Discovery::parse("network.md", &text).unwrap();
                assert_eq!(read.found.len(), 1);
            }
            false => {
                let layer = Layer::from_toml("network.md", &text, std::slice::from_ref(&service));
                layer.unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }
}

#[test]
fn lines_that_the_page_calls_errors_are_errors() {
    for text in ["example.com/a/../b", "example.com/%7Euser", "Example.com", "https://example.com"]
    {
        assert!(Line::parse(text).is_err(), "{text}");
    }
}

#[test]
fn rules_on_command_lines_of_the_page_are_rules() {
    let commands = blocks("sh").concat();
    let mut count = 0;
    for part in commands.split("--allow \"").skip(1) {
        let line = part.split('"').next().unwrap();
        Line::parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        count += 1;
    }
    assert_eq!(count, 1);
}
