//! Secrets from a file of variables or from the environment: first what would be done, then the deed.

use services::{Catalogue, Kind};
use wire::text::Secret;
use zeroize::Zeroizing;

use crate::record::{check_value, mask};

/// Longest file, in bytes.
const MAX_FILE: usize = 1 << 20;

/// A variable and its value.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Secret,
}

/// A secret that could be imported.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The service.
    pub service: String,
    /// The variables that it is of.
    pub variables: Vec<String>,
    /// What may be seen of it.
    pub masked: String,
    /// What becomes of it.
    pub fate: Fate,
}

/// What becomes of a candidate.
#[derive(Debug, Clone)]
pub enum Fate {
    /// It is kept.
    Import(Secret),
    /// It is not, and why.
    Skip(String),
}

/// Why a file of variables cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// It is no file of variables.
    #[error("the file is longer than {limit} bytes")]
    TooLong {
        /// Most bytes.
        limit: usize,
    },
    /// A line that sets no variable.
    #[error("line {line} {problem}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The variables of a file such as `.env`: `NAME=value`, `export NAME="value"`, `# comment`. Nothing in
/// a value is replaced.
///
/// # Errors
/// The line that is none of these.
pub fn variables(text: &str) -> Result<Vec<Variable>, ImportError> {
    if text.len() > MAX_FILE {
        return Err(ImportError::TooLong { limit: MAX_FILE });
    }
    let mut variables = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let fault = |problem| ImportError::Line { line: index + 1, problem };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        let (name, value) = line.split_once('=').ok_or_else(|| fault("has no `=`"))?;
        let is_name = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && !name.starts_with(|first: char| first.is_ascii_digit());
        if !is_name {
            return Err(fault("does not begin with the name of a variable and `=`"));
        }
        let value = unquoted(value.trim()).map_err(fault)?;
        let value = Secret::new(value.as_bytes().to_vec()).map_err(|_| fault("has a NUL"))?;
        variables.push(Variable { name: name.to_owned(), value });
    }
    Ok(variables)
}

fn unquoted(text: &str) -> Result<Zeroizing<String>, &'static str> {
    let quote = text.chars().next().filter(|first| matches!(first, '"' | '\''));
    let Some(quote) = quote else {
        // A comment begins behind a space.
        let end = text.find(" #").unwrap_or(text.len());
        return Ok(Zeroizing::new(text[..end].trim_end().to_owned()));
    };
    let mut value = Zeroizing::new(String::with_capacity(text.len()));
    let mut characters = text[1..].chars();
    while let Some(character) = characters.next() {
        match character {
            _ if character == quote => {
                let rest = characters.as_str().trim_start();
                return match rest.is_empty() || rest.starts_with('#') {
                    true => Ok(value),
                    false => Err("has something behind the closing quote"),
                };
            }
            '\\' if quote == '"' => match characters.next() {
                Some(escaped @ ('"' | '\\' | '$' | '`')) => value.push(escaped),
                Some(other) => {
                    value.push('\\');
                    value.push(other);
                }
                None => break,
            },
            other => value.push(other),
        }
    }
    Err("has no closing quote; a value ends in its line")
}

/// What these variables would make: of each service that has some of them, one secret.
pub fn plan(catalogue: &Catalogue, variables: &[Variable]) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for name in catalogue.names() {
        let Ok(service) = catalogue.sample(name) else { continue };
        // The last line of a name is the one that holds, as in a shell.
        let get = |name: &String| variables.iter().rev().find(|one| one.name == *name);
        let set: Vec<&Variable> = service
            .env
            .iter()
            .filter_map(get)
            .filter(|one| !one.value.expose().is_empty())
            .collect();
        let Some(first) = set.first() else { continue };
        let (used, secret) = match service.kind {
            Kind::Static => (vec![*first], first.value.clone()),
            Kind::Aws { .. } => {
                let parts: Vec<&Variable> = service.env.iter().map_while(get).collect();
                let joined = parts.iter().map(|one| one.value.expose()).collect::<Vec<_>>();
                let joined = Zeroizing::new(joined.join(&b':'));
                let secret = Secret::new(joined.to_vec()).unwrap_or_default();
                (parts, secret)
            }
        };
        let names =
            |list: &[&Variable]| list.iter().map(|one| one.name.clone()).collect::<Vec<_>>();
        let mut candidate = |variables, fate| {
            let masked = mask(secret.expose());
            candidates.push(Candidate { service: name.to_owned(), variables, masked, fate });
        };
        if matches!(service.kind, Kind::Aws { .. }) && used.len() < 2 {
            let reason = format!("it takes {} and {}", service.env[0], service.env[1]);
            candidate(names(&set), Fate::Skip(reason));
            continue;
        }
        let fate = match (check_value(secret.expose()), catalogue.get(name)) {
            (Err(error), _) => Fate::Skip(error.to_string()),
            (Ok(()), Err(error)) => Fate::Skip(error.to_string()),
            (Ok(()), Ok(_)) => Fate::Import(secret.clone()),
        };
        candidate(names(&used), fate);
        // Others of the service that say something else would be lost in silence.
        for other in set.iter().filter(|one| !names(&used).contains(&one.name)) {
            if other.value != first.value && matches!(service.kind, Kind::Static) {
                let reason = format!("{} wins and has another value", first.name);
                candidate(vec![other.name.clone()], Fate::Skip(reason));
            }
        }
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        let own =
            |one: Variable| (one.name, String::from_utf8(one.value.expose().to_vec()).unwrap());
        variables(text).unwrap().into_iter().map(own).collect()
    }

    fn planned(text: &str) -> Vec<String> {
        plan(&Catalogue::built_in(), &variables(text).unwrap())
            .into_iter()
            .map(|one| match one.fate {
                Fate::Import(secret) => {
                    format!("{} {}", one.service, String::from_utf8_lossy(secret.expose()))
                }
                Fate::Skip(reason) => {
                    format!("{} {}: {reason}", one.service, one.variables.join(","))
                }
            })
            .collect()
    }

    #[test]
    fn a_file_of_variables_is_read_as_a_shell_would() {
        let text = "# keys\n\nA=1 # one\n export B=\"two \\\"2\\\" \\n # x\" # y\nC='th$ree\\'\nD=\nE=a#b\n";
        let expected =
            [("A", "1"), ("B", "two \"2\" \\n # x"), ("C", "th$ree\\"), ("D", ""), ("E", "a#b")];
        assert_eq!(read(text), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_line_that_sets_nothing_is_told_by_its_number_and_never_quoted() {
        for (text, line) in
            [("A=1\nsecret", 2), ("1A=secret", 1), ("A=\"secret", 1), ("A='x' secret", 1)]
        {
            let error = variables(text).unwrap_err();
            assert!(matches!(error, ImportError::Line { line: at, .. } if at == line));
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn what_a_service_knows_is_imported_and_the_rest_left_alone() {
        assert_eq!(
            planned("GITHUB_TOKEN=ghp_0123456789\nHOME=/root\nOPENAI_API_KEY=sk-0123456789"),
            ["github ghp_0123456789", "openai sk-0123456789"]
        );
    }

    #[test]
    fn two_variables_of_one_service_that_differ_are_not_hidden() {
        let same = "GH_TOKEN=ghp_0123456789\nGITHUB_TOKEN=ghp_0123456789";
        assert_eq!(planned(same), ["github ghp_0123456789"]);
        let other = "GH_TOKEN=ghp_0123456789\nGITHUB_TOKEN=ghp_9876543210";
        assert_eq!(
            planned(other),
            ["github ghp_0123456789", "github GITHUB_TOKEN: GH_TOKEN wins and has another value"]
        );
    }

    #[test]
    fn keys_of_aws_become_one_secret() {
        let text = "AWS_ACCESS_KEY_ID=AKIA0\nAWS_SECRET_ACCESS_KEY=secret\nAWS_SESSION_TOKEN=token";
        assert_eq!(planned(text), ["aws AKIA0:secret:token"]);
        let half = planned("AWS_ACCESS_KEY_ID=AKIA0");
        assert_eq!(
            half,
            ["aws AWS_ACCESS_KEY_ID: it takes AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"]
        );
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let short = planned("GROQ_API_KEY=x");
        assert!(short[0].starts_with("groq GROQ_API_KEY: the secret is shorter than"), "{short:?}");
        let azure = planned("AZURE_OPENAI_API_KEY=0123456789");
        assert!(azure[0].contains("azure-openai needs resource"), "{azure:?}");
    }
}
