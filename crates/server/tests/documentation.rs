//! `docs/api.md` says of routes, problems and events what the types say.
//!
//! `SANDFORGE_WRITE_DOCS=1 cargo test -p server --test documentation` writes it.

use std::fmt::Write as _;

use api::{Access, Code, EventKind, ROUTES};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md");

fn problems() -> String {
    let mut table = String::from("| status | code | what it means |\n|---|---|---|\n");
    for code in Code::ALL {
        let _ = writeln!(
            table,
            "| {} | `{code}` | {}: {} |",
            code.status(),
            code.title(),
            code.meaning()
        );
    }
    table
}

fn events() -> String {
    let mut table = String::from("| kind | what it says |\n|---|---|\n");
    for kind in EventKind::ALL {
        let _ = writeln!(table, "| `{kind}` | {} |", kind.meaning());
    }
    table
}

fn routes() -> String {
    let mut table = String::from("| request | right | what it does |\n|---|---|---|\n");
    for route in ROUTES {
        let right = match route.access {
            Access::Public => "none".into(),
            Access::Needs(operation) => format!("`{operation}`"),
        };
        let _ = writeln!(
            table,
            "| `{} {}` | {right} | {} |",
            route.method,
            route.path,
            route.summary.replace('|', "\\|")
        );
    }
    table
}

/// The page with this table behind its mark.
fn with(page: &str, name: &str, table: &str) -> String {
    let mark = format!("<!-- {name} -->\n");
    let (before, after) = page.split_once(&mark).expect("the mark is there");
    let rest = after.trim_start_matches('\n');
    let rest = match rest.starts_with('|') {
        true => rest.split_once("\n\n").map_or("", |(_, rest)| rest),
        false => rest,
    };
    let end = if rest.is_empty() { String::new() } else { format!("\n{rest}") };
    format!("{before}{mark}\n{table}{end}")
}

#[test]
fn the_page_of_the_api_is_what_the_types_say() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let mut expected = with(&page, "problems", &problems());
    expected = with(&expected, "events", &events());
    expected = with(&expected, "routes", &routes());
    if std::env::var_os("SANDFORGE_WRITE_DOCS").is_some() {
        std::fs::write(PAGE, &expected).unwrap();
        return;
    }
    assert!(
        page == expected,
        "docs/api.md is out of date: SANDFORGE_WRITE_DOCS=1 cargo test -p server --test documentation"
    );
}
