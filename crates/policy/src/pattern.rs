//! Patterns: `*` is the only wildcard, and matching takes time linear in the text.

use std::path::{Component, Path};

use crate::shell::{self, Char};

/// Longest pattern, in bytes.
pub(crate) const MAX_PATTERN: usize = 512;

/// One word or path component; `*` stands for any characters, also none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Glob {
    /// What stands between the stars: one more than there are stars.
    parts: Vec<String>,
}

impl Glob {
    /// Every `*` is a wildcard.
    pub(crate) fn new(text: &str) -> Self {
        Self { parts: text.split('*').map(str::to_owned).collect() }
    }

    fn of_chars(word: &[Char]) -> Self {
        let mut parts = vec![String::new()];
        for &char in word {
            match char {
                Char::Star => parts.push(String::new()),
                Char::Literal(char) => parts.extend_last(char),
            }
        }
        Self { parts }
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        let [first, middle @ .., last] = &self.parts[..] else {
            return self.parts.first().is_some_and(|only| only == text);
        };
        let Some(mut rest) = text.strip_prefix(first.as_str()) else { return false };
        for part in middle {
            let Some(at) = rest.find(part.as_str()) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last.as_str())
    }

    /// The text, where there is no wildcard.
    fn literal(&self) -> Option<&str> {
        match &self.parts[..] {
            [only] => Some(only),
            _ => None,
        }
    }

    /// How many characters are said: the more, the more specific.
    pub(crate) fn weight(&self) -> usize {
        self.parts.iter().map(|part| part.chars().count()).sum()
    }
}

trait ExtendLast {
    fn extend_last(&mut self, char: char);
}

impl ExtendLast for Vec<String> {
    fn extend_last(&mut self, char: char) {
        if let Some(last) = self.last_mut() {
            last.push(char);
        }
    }
}

/// Why a text is no pattern.
pub(crate) type Problem = String;

/// Refuses what other tools would take for a wildcard or an expansion: silently matching nothing,
/// a denial would be none.
fn plain(text: &str) -> Result<(), Problem> {
    if text.is_empty() {
        return Err("a pattern is not empty".to_owned());
    }
    if text.len() > MAX_PATTERN {
        return Err(format!("a pattern has at most {MAX_PATTERN} bytes"));
    }
    if let Some(char) = text.chars().find(|&c| c.is_control() || c == char::REPLACEMENT_CHARACTER) {
        return Err(format!("{char:?} is in no name"));
    }
    Ok(())
}

fn no_other_wildcards(text: &str) -> Result<(), Problem> {
    match text.chars().find(|char| "?[]{}\\$!".contains(*char)) {
        Some(char) => Err(format!(
            "`{char}` means nothing here; `*` is the only wildcard, and several patterns are several strings"
        )),
        None => Ok(()),
    }
}

/// A name: a variable's, a user's, a workspace's.
pub(crate) fn name(text: &str) -> Result<Glob, Problem> {
    plain(text)?;
    no_other_wildcards(text)?;
    Ok(Glob::new(text))
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// `**`
    Any,
    One(Glob),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Anchor {
    Root,
    Home,
    /// Anywhere.
    None,
}

/// A path, component by component: `*` is any part of one, `**` any number of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PathPattern {
    text: String,
    anchor: Anchor,
    parts: Vec<Part>,
    weight: usize,
}

/// How a path lies to those that a pattern matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    /// The pattern matches it, or one of its ancestors.
    Within,
    /// The pattern may match something below it.
    Above,
    /// Neither.
    Apart,
}

impl PathPattern {
    /// What must not be seen: case does not matter, and what does not begin with `/` or `~/` is
    /// matched anywhere.
    pub(crate) fn denied(text: &str) -> Result<Self, Problem> {
        plain(text)?;
        no_other_wildcards(text)?;
        Self::of(text, &folded(text), true)
    }

    /// A root of what can be seen.
    pub(crate) fn root(text: &str) -> Result<Self, Problem> {
        plain(text)?;
        no_other_wildcards(text)?;
        let pattern = Self::of(text, text, false)?;
        if pattern.anchor == Anchor::None {
            return Err(format!("{text:?} is no absolute path; write `/…` or `~/…`"));
        }
        Ok(pattern)
    }

    /// An image: its components are those between slashes, as of a path.
    pub(crate) fn image(text: &str) -> Result<Self, Problem> {
        plain(text)?;
        no_other_wildcards(text)?;
        // Of a file, the first component is the nothing in front of the slash.
        let parts = match text.strip_prefix('/') {
            Some(rest) => {
                let mut parts = parts(rest)?;
                parts.insert(0, Part::One(Glob::new("")));
                parts
            }
            None => parts(text)?,
        };
        Ok(Self { text: text.to_owned(), anchor: Anchor::Root, weight: weight(&parts), parts })
    }

    /// This path and what is below, whatever characters it has.
    pub(crate) fn literal(path: &Path) -> Self {
        let name = |name: String| Part::One(Glob { parts: vec![name] });
        let parts: Vec<_> = folded_components(path).into_iter().map(name).collect();
        let text = path.to_string_lossy().into_owned();
        Self { text, anchor: Anchor::Root, weight: weight(&parts), parts }
    }

    fn of(text: &str, folded: &str, floats: bool) -> Result<Self, Problem> {
        let (anchor, rest) = match folded.strip_prefix('/') {
            Some(rest) => (Anchor::Root, rest),
            None if folded == "~" => (Anchor::Home, ""),
            None => match folded.strip_prefix("~/") {
                Some(rest) => (Anchor::Home, rest),
                None => (Anchor::None, folded),
            },
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.starts_with('~') && anchor == Anchor::None {
            return Err("`~` is the home directory of who runs Sandforge; others are written as whole paths".to_owned());
        }
        let mut parts = if rest.is_empty() { Vec::new() } else { parts(rest)? };
        let weight = weight(&parts);
        if anchor == Anchor::None && floats {
            parts.insert(0, Part::Any);
        }
        Ok(Self { text: text.to_owned(), anchor, parts, weight })
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    pub(crate) fn is_below_home(&self) -> bool {
        self.anchor == Anchor::Home
    }

    /// Matched at any depth.
    pub(crate) fn floats(&self) -> bool {
        self.anchor == Anchor::None
    }

    /// With a home directory in the place of `~`. `home` is as the paths that it is matched with:
    /// folded or not.
    pub(crate) fn settle(&mut self, home: &[String]) {
        if self.anchor == Anchor::Home {
            let literal = |name: &String| Part::One(Glob { parts: vec![name.clone()] });
            self.parts.splice(0..0, home.iter().map(literal));
            self.anchor = Anchor::Root;
        }
    }

    pub(crate) fn relation(&self, components: &[String]) -> Relation {
        let (floats, rest) = match &self.parts[..] {
            [Part::Any, rest @ ..] => (true, rest),
            parts => (false, parts),
        };
        if rest.contains(&Part::Any) {
            return self.relation_in_general(components);
        }
        // Most patterns, and asked about each file of a mount.
        let starts_with = |components: &[String]| {
            let mut pairs = rest.iter().zip(components);
            pairs.all(|(part, name)| matches!(part, Part::One(glob) if glob.matches(name)))
        };
        let enough = components.len() >= rest.len();
        match floats {
            true if rest.is_empty() || components.windows(rest.len()).any(starts_with) => {
                Relation::Within
            }
            true => Relation::Above,
            false if !starts_with(components) => Relation::Apart,
            false if enough => Relation::Within,
            false => Relation::Above,
        }
    }

    fn relation_in_general(&self, components: &[String]) -> Relation {
        let mut at = self.start();
        for component in components {
            if at[self.parts.len()] {
                return Relation::Within;
            }
            at = self.step(&at, component);
        }
        match (at[self.parts.len()], at.contains(&true)) {
            (true, _) => Relation::Within,
            (false, true) => Relation::Above,
            (false, false) => Relation::Apart,
        }
    }

    /// The whole path, not an ancestor of it.
    pub(crate) fn matches(&self, components: &[String]) -> bool {
        let at = components.iter().fold(self.start(), |at, component| self.step(&at, component));
        at[self.parts.len()]
    }

    /// Which parts may be next, with one more place for the end.
    fn start(&self) -> Vec<bool> {
        let mut at = vec![false; self.parts.len() + 1];
        at[0] = true;
        self.skip(&mut at);
        at
    }

    fn skip(&self, at: &mut [bool]) {
        for (index, part) in self.parts.iter().enumerate() {
            if at[index] && *part == Part::Any {
                at[index + 1] = true;
            }
        }
    }

    fn step(&self, at: &[bool], component: &str) -> Vec<bool> {
        let mut next = vec![false; at.len()];
        for (index, part) in self.parts.iter().enumerate().filter(|(index, _)| at[*index]) {
            match part {
                Part::Any => next[index] = true,
                Part::One(glob) if glob.matches(component) => next[index + 1] = true,
                Part::One(_) => {}
            }
        }
        self.skip(&mut next);
        next
    }
}

fn parts(text: &str) -> Result<Vec<Part>, Problem> {
    text.split('/').map(part).collect()
}

fn part(text: &str) -> Result<Part, Problem> {
    match text {
        "" => Err("there is nothing between two slashes, or at an end".to_owned()),
        "." | ".." => Err(format!("`{text}` is in no resolved path")),
        "**" => Ok(Part::Any),
        text if text.contains("**") => Err("`**` stands alone between slashes".to_owned()),
        text => Ok(Part::One(Glob::new(text))),
    }
}

fn weight(parts: &[Part]) -> usize {
    let one = |part: &Part| match part {
        Part::Any => 0,
        Part::One(glob) => 1 + glob.weight(),
    };
    parts.iter().map(one).sum()
}

/// The components of a path, `..` included, `.` not.
pub(crate) fn components(path: &Path) -> Vec<String> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            Component::ParentDir => Some("..".to_owned()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// Character by character: `str::to_lowercase` looks at what is beside one, which in a pattern is
/// another thing than in a name.
fn folded(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect()
}

/// In lower case, as denials are matched: the path may be on a file system that does not care.
pub(crate) fn folded_components(path: &Path) -> Vec<String> {
    components(path).iter().map(|name| folded(name)).collect()
}

/// The components of an image's name.
pub(crate) fn image_components(image: &str) -> Vec<String> {
    image.split('/').map(str::to_owned).collect()
}

/// The words of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandPattern {
    words: Vec<Glob>,
    /// A last `**`.
    rest: bool,
}

impl CommandPattern {
    /// One string, split as a shell does, without expansions. A quoted `*` is a star.
    pub(crate) fn line(text: &str) -> Result<Self, Problem> {
        plain(text)?;
        let words = shell::split(text).map_err(str::to_owned)?;
        Self::of_words(&words)
    }

    /// Words as they are. A `*` is always a wildcard.
    pub(crate) fn words<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self, Problem> {
        let mut all = Vec::new();
        for word in words {
            if !word.is_empty() {
                plain(word)?;
            }
            let char = |char| if char == '*' { Char::Star } else { Char::Literal(char) };
            all.push(word.chars().map(char).collect());
        }
        Self::of_words(&all)
    }

    fn of_words(words: &[Vec<Char>]) -> Result<Self, Problem> {
        const ANY: [Char; 2] = [Char::Star, Char::Star];
        let (words, rest) = match words {
            [] => return Err("a command has at least one word".to_owned()),
            [words @ .., last] if *last == ANY => (words, true),
            words => (words, false),
        };
        if words.iter().any(|word| word.windows(2).any(|two| two == ANY)) {
            return Err("`**` is a word of its own, and the last one; within a command `*` stands for one word".to_owned());
        }
        Ok(Self { words: words.iter().map(|word| Glob::of_chars(word)).collect(), rest })
    }

    pub(crate) fn weight(&self) -> usize {
        self.words.iter().map(|word| 1 + word.weight()).sum()
    }

    fn fits(&self, words: &[String], first: impl Fn(&Glob, &str) -> bool) -> bool {
        let enough = if self.rest {
            words.len() >= self.words.len()
        } else {
            words.len() == self.words.len()
        };
        enough
            && self.words.iter().zip(words).enumerate().all(|(index, (glob, word))| match index {
                0 => first(glob, word),
                _ => glob.matches(word),
            })
    }

    /// These very words.
    pub(crate) fn allows(&self, argv: &[String]) -> bool {
        self.fits(argv, Glob::matches)
    }

    /// `/bin/sh -c LINE`, where the shell was named, or everything was.
    pub(crate) fn allows_shell(&self, line: &str) -> bool {
        let Some(program) = self.words.first() else { return self.rest };
        ["sh", "/bin/sh"].into_iter().any(|shell| {
            let argv = [shell, "-c", line].map(str::to_owned);
            program.literal() == Some(shell) && self.allows(&argv)
        })
    }

    /// These words, whether the program is named by its path or found by PATH.
    pub(crate) fn denies(&self, words: &[String]) -> bool {
        self.fits(words, |glob, word| {
            let name = shell::basename(word);
            glob.matches(word)
                || glob.matches(name)
                || (name == word
                    && glob.literal().is_some_and(|path| shell::basename(path) == name))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(pattern: &str, path: &str) -> Relation {
        let mut pattern = PathPattern::denied(pattern).unwrap();
        pattern.settle(&folded_components(Path::new("/home/Ann")));
        pattern.relation(&folded_components(Path::new(path)))
    }

    fn is_image(pattern: &str, image: &str) -> bool {
        PathPattern::image(pattern).unwrap().matches(&image_components(image))
    }

    fn words(words: &str) -> Vec<String> {
        words.split(' ').map(str::to_owned).collect()
    }

    fn allows(pattern: &str, argv: &str) -> bool {
        CommandPattern::line(pattern).unwrap().allows(&words(argv))
    }

    fn denies(pattern: &str, argv: &str) -> bool {
        CommandPattern::line(pattern).unwrap().denies(&words(argv))
    }

    #[test]
    fn a_star_is_any_characters() {
        for (pattern, text) in
            [("a*c", "abc"), ("a*c", "ac"), ("*", ""), ("*a*", "xay"), ("a", "a")]
        {
            assert!(Glob::new(pattern).matches(text), "{pattern} {text}");
        }
        for (pattern, text) in [("a*c", "ab"), ("a", "ab"), ("ab*ba", "aba"), ("*a*b*a*", "ba")] {
            assert!(!Glob::new(pattern).matches(text), "{pattern} {text}");
        }
    }

    #[test]
    fn a_name_is_denied_anywhere_and_with_what_is_below() {
        assert_eq!(relation(".ssh", "/home/ann/.ssh/id"), Relation::Within);
        assert_eq!(relation(".SSH", "/x/.Ssh"), Relation::Within);
        assert_eq!(relation("ΟΔΟΣ*", "/x/ΟΔΟΣΑ"), Relation::Within);
        assert_eq!(relation("*.pem", "/x/key.pem"), Relation::Within);
        assert_eq!(relation(".docker/config.json", "/x/.docker/config.json"), Relation::Within);
        assert_eq!(relation(".docker/config.json", "/x/.docker"), Relation::Above);
        assert_eq!(relation(".ssh", "/home/ann/.sshx"), Relation::Above);
    }

    #[test]
    fn a_path_is_denied_where_it_is() {
        assert_eq!(relation("/srv/a", "/srv/a/b"), Relation::Within);
        assert_eq!(relation("/srv/a", "/srv"), Relation::Above);
        assert_eq!(relation("/srv/a", "/"), Relation::Above);
        assert_eq!(relation("/srv/a", "/x/srv/a"), Relation::Apart);
        assert_eq!(relation("~/a", "/home/ann/A"), Relation::Within);
        assert_eq!(relation("~", "/home"), Relation::Above);
        assert_eq!(relation("/home/*/x", "/home/bob/x"), Relation::Within);
    }

    #[test]
    fn two_stars_are_any_number_of_components() {
        assert_eq!(relation("/a/**/z", "/a/z"), Relation::Within);
        assert_eq!(relation("/a/**/z", "/a/b/c/z/d"), Relation::Within);
        assert_eq!(relation("/a/**/z", "/a/b"), Relation::Above);
        assert_eq!(relation("/a/**/z", "/b"), Relation::Apart);
        assert_eq!(relation("a/**", "/x/a"), Relation::Within);
    }

    #[test]
    fn an_image_is_matched_between_slashes() {
        assert!(is_image("*", "base"));
        assert!(is_image("debian:*", "debian:12"));
        assert!(is_image("ghcr.io/acme/**", "ghcr.io/acme/a/b:1"));
        assert!(is_image("/**", "/home/ann/root.tar"));
        assert!(!is_image("*", "ghcr.io/x"));
        assert!(!is_image("*", "/x"));
        assert!(!is_image("**/x", "y"));
    }

    #[test]
    fn a_command_is_matched_word_by_word() {
        assert!(allows("git push *", "git push origin"));
        assert!(!allows("git push *", "git push"));
        assert!(!allows("git push *", "git push origin main"));
        assert!(allows("git push **", "git push"));
        assert!(allows("git push **", "git push origin main"));
        assert!(allows("**", "anything at all"));
        assert!(allows("npm run test:*", "npm run test:unit"));
        assert!(!allows("echo '*'", "echo x"));
    }

    #[test]
    fn permission_is_for_the_program_as_named_and_denial_for_both_names() {
        assert!(!allows("git **", "/tmp/git x"));
        assert!(!allows("/usr/bin/git **", "git x"));
        assert!(denies("git **", "/tmp/git x"));
        assert!(denies("/usr/bin/git **", "git x"));
        assert!(denies("/usr/bin/git **", "/usr/bin/git x"));
        assert!(!denies("/usr/bin/git **", "/tmp/git x"));
    }

    #[test]
    fn a_shell_is_allowed_by_name_or_with_everything() {
        let allows = |pattern| CommandPattern::line(pattern).unwrap().allows_shell("git status");
        assert!(allows("sh -c *"));
        assert!(allows("/bin/sh **"));
        assert!(allows("**"));
        for pattern in ["git **", "* **", "* -c *", "s* -c *", "bash -c *", "sh -c", "sh"] {
            assert!(!allows(pattern), "{pattern}");
        }
    }

    #[test]
    fn what_looks_like_another_wildcard_is_refused() {
        for text in [
            "a?",
            "[ab]",
            "{a,b}",
            "$HOME/x",
            "a\\b",
            "!a",
            "",
            "a/../b",
            "a//b",
            "~bob/x",
            "a**",
            "a\u{fffd}",
        ] {
            assert!(PathPattern::denied(text).is_err(), "{text}");
        }
        assert!(PathPattern::root("src").is_err());
        for text in ["", "git ** x", "git a**", "'"] {
            assert!(CommandPattern::line(text).is_err(), "{text}");
        }
    }
}
