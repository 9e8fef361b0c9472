//! Command lines as far as a lexer can see: no expansion, no variable, no file.

/// A character of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Char {
    /// An unquoted `*`.
    Star,
    /// Any other.
    Literal(char),
}

/// The words of a pattern: blanks part them, quotes and backslashes keep together.
pub(crate) fn split(text: &str) -> Result<Vec<Vec<Char>>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<Vec<Char>> = None;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            char if char.is_ascii_whitespace() => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        None => return Err("a `'` is not closed"),
                        Some('\'') => break,
                        Some(char) => word.push(Char::Literal(char)),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        None => return Err("a `\"` is not closed"),
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            None => return Err("a `\"` is not closed"),
                            Some(char @ ('"' | '\\' | '$' | '`')) => word.push(Char::Literal(char)),
                            Some(char) => word.extend([Char::Literal('\\'), Char::Literal(char)]),
                        },
                        Some(char) => word.push(Char::Literal(char)),
                    }
                }
            }
            '\\' => match chars.next() {
                None => return Err("there is nothing behind the last `\\`"),
                Some(char) => word.get_or_insert_default().push(Char::Literal(char)),
            },
            '*' => word.get_or_insert_default().push(Char::Star),
            char => word.get_or_insert_default().push(Char::Literal(char)),
        }
    }
    words.extend(word);
    Ok(words)
}

/// What is behind the last slash.
pub(crate) fn basename(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// Programs whose arguments may be a command: every tail of theirs is looked at.
const CARRIERS: &[&str] = &[
    "builtin", "busybox", "chroot", "command", "doas", "env", "exec", "find", "flock", "ionice",
    "nice", "nohup", "parallel", "prlimit", "setpriv", "setsid", "stdbuf", "strace", "sudo",
    "taskset", "time", "timeout", "toybox", "unshare", "watch", "xargs",
];

/// Programs whose arguments may be lines of shell.
const SHELLS: &[&str] = &[
    "ash", "bash", "dash", "eval", "fish", "ksh", "mksh", "script", "sh", "su", "trap", "watch",
    "yash", "zsh",
];

/// Words in front of a command that are no program.
const RESERVED: &[&str] =
    &["!", "{", "}", "do", "elif", "else", "if", "then", "until", "while", "coproc"];

/// Lines within lines, and substitutions within substitutions, that are looked into.
const MAX_DEPTH: usize = 16;
/// Commands that are looked at in all. What has more is no command that a person wrote.
const MAX_COMMANDS: usize = 4096;
/// Bytes of lines that are looked at in all.
const MAX_BYTES: usize = 8 << 20;
/// How far from its beginning a carrier's command begins.
const MAX_TAILS: usize = 256;

/// More commands than are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany;

/// Calls `look` with the words of each command that `argv` runs, itself first, as far as can be
/// seen.
pub(crate) fn each_of_argv(
    argv: &[String],
    look: &mut impl FnMut(&[String]),
) -> Result<(), TooMany> {
    Walk { look, commands: MAX_COMMANDS, bytes: MAX_BYTES }.argv(argv, 0)
}

/// Calls `look` with the words of each command of a line for the shell, as far as can be seen.
pub(crate) fn each_of_line(line: &str, look: &mut impl FnMut(&[String])) -> Result<(), TooMany> {
    Walk { look, commands: MAX_COMMANDS, bytes: MAX_BYTES }.line(line, 0)
}

struct Walk<'a, F> {
    look: &'a mut F,
    commands: usize,
    bytes: usize,
}

impl<F: FnMut(&[String])> Walk<'_, F> {
    fn line(&mut self, line: &str, depth: usize) -> Result<(), TooMany> {
        self.bytes = self.bytes.checked_sub(line.len()).ok_or(TooMany)?;
        for words in commands(line) {
            self.argv(&words, depth)?;
        }
        Ok(())
    }

    fn argv(&mut self, argv: &[String], depth: usize) -> Result<(), TooMany> {
        let Some(program) = argv.first().map(|program| basename(program)) else { return Ok(()) };
        let tails = if CARRIERS.contains(&program) { argv.len().min(MAX_TAILS) } else { 1 };
        for start in 0..tails {
            self.commands = self.commands.checked_sub(1).ok_or(TooMany)?;
            let words = &argv[start..];
            (self.look)(words);
            if SHELLS.contains(&basename(&words[0])) {
                if depth == MAX_DEPTH {
                    return Err(TooMany);
                }
                for line in words.iter().skip(1).filter(|word| !word.starts_with('-')) {
                    self.line(line, depth + 1)?;
                }
            }
        }
        Ok(())
    }
}

/// The simple commands of a line, without assignments and redirections.
pub(crate) fn commands(line: &str) -> Vec<Vec<String>> {
    let chars: Vec<char> = line.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0, commands: Vec::new() };
    while lexer.at < chars.len() {
        lexer.list(0);
    }
    lexer.commands
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    commands: Vec<Vec<String>>,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.chars.get(self.at).copied();
        self.at += usize::from(next.is_some());
        next
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    /// Up to and with a `)`, or to the end.
    fn list(&mut self, depth: usize) {
        let mut words = Vec::new();
        let mut skip = false;
        while let Some(char) = self.peek() {
            match char {
                ' ' | '\t' | '\r' => self.at += 1,
                '#' => {
                    while self.peek().is_some_and(|char| char != '\n') {
                        self.at += 1;
                    }
                }
                ';' | '\n' | '|' | '(' => {
                    self.at += 1;
                    self.command(&mut words);
                    skip = false;
                }
                '&' => {
                    self.at += 1;
                    // `&>` is a redirection.
                    if self.peek() != Some('>') {
                        self.command(&mut words);
                        skip = false;
                    }
                }
                ')' => {
                    self.at += 1;
                    break;
                }
                '<' | '>' => {
                    self.at += 1;
                    // `<(…)` and `>(…)` hold commands; behind all others is a file.
                    if self.peek() == Some('(') {
                        self.at += 1;
                        self.nested(depth);
                    } else {
                        while self.peek().is_some_and(|char| "<>&|-".contains(char)) {
                            self.at += 1;
                        }
                        skip = true;
                    }
                }
                _ => {
                    let word = self.word(depth);
                    let is_descriptor = self.peek().is_some_and(|char| "<>".contains(char))
                        && word.chars().all(|char| char.is_ascii_digit());
                    if !std::mem::take(&mut skip) && !is_descriptor {
                        words.push(word);
                    }
                }
            }
        }
        self.command(&mut words);
    }

    /// A list of its own, while that many can be.
    fn nested(&mut self, depth: usize) {
        if depth < MAX_DEPTH {
            self.list(depth + 1);
        }
    }

    fn command(&mut self, words: &mut Vec<String>) {
        let words = std::mem::take(words);
        let is_prefix = |word: &&String| RESERVED.contains(&word.as_str()) || is_assignment(word);
        let from = words.iter().take_while(is_prefix).count();
        if from < words.len() {
            self.commands.push(words[from..].to_vec());
        }
    }

    fn word(&mut self, depth: usize) -> String {
        let mut word = String::new();
        while let Some(char) = self.peek() {
            if " \t\r\n;|&()<>".contains(char) {
                break;
            }
            self.at += 1;
            match char {
                '\'' => {
                    while let Some(char) = self.next().filter(|&char| char != '\'') {
                        word.push(char);
                    }
                }
                '"' => self.quoted(&mut word, depth),
                '\\' => match self.next() {
                    // A line that goes on.
                    Some('\n') => {}
                    Some(char) => word.push(char),
                    None => word.push('\\'),
                },
                '$' | '`' => self.substitution(char, &mut word, depth),
                char => word.push(char),
            }
        }
        word
    }

    fn quoted(&mut self, word: &mut String, depth: usize) {
        while let Some(char) = self.next().filter(|&char| char != '"') {
            match char {
                '\\' => match self.next() {
                    Some('\n') | None => {}
                    Some(char @ ('"' | '\\' | '$' | '`')) => word.push(char),
                    Some(char) => word.extend(['\\', char]),
                },
                '$' | '`' => self.substitution(char, word, depth),
                char => word.push(char),
            }
        }
    }

    /// Behind a `$` or a backquote. What is substituted is not known; that it is, stays in the word.
    fn substitution(&mut self, char: char, word: &mut String, depth: usize) {
        word.push(char);
        match (char, self.peek()) {
            ('$', Some('(')) if depth < MAX_DEPTH => {
                self.at += 1;
                self.nested(depth);
            }
            ('`', _) => {
                let mut line = Vec::new();
                while let Some(char) = self.next().filter(|&char| char != '`') {
                    match char {
                        '\\' => line.extend(self.next()),
                        char => line.push(char),
                    }
                }
                if depth < MAX_DEPTH {
                    let mut inner = Lexer { chars: &line, at: 0, commands: Vec::new() };
                    while inner.at < line.len() {
                        inner.list(depth + 1);
                    }
                    self.commands.append(&mut inner.commands);
                }
            }
            _ => {}
        }
    }
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        let mut chars = name.trim_end_matches('+').chars();
        chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
            && chars.all(|char| char.is_ascii_alphanumeric() || char == '_')
    })
}
