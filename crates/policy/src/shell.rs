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
///
/// # Errors
/// `TooMany` where it did not get to the end.
pub(crate) fn each_command(
    argv: &[String],
    look: &mut impl FnMut(&[String]),
) -> Result<(), TooMany> {
    Walk { look, commands: MAX_COMMANDS, bytes: MAX_BYTES }.argv(argv, 0)
}

struct Walk<'a, F> {
    look: &'a mut F,
    commands: usize,
    bytes: usize,
}

impl<F: FnMut(&[String])> Walk<'_, F> {
    fn line(&mut self, line: &str, depth: usize) -> Result<(), TooMany> {
        self.bytes = self.bytes.checked_sub(line.len()).ok_or(TooMany)?;
        if depth > MAX_DEPTH {
            return Err(TooMany);
        }
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
            let program = basename(&words[0]);
            if program == "eval" {
                self.line(&words[1..].join(" "), depth + 1)?;
            } else if SHELLS.contains(&program) {
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
    commands_of(&chars, 0)
}

fn commands_of(chars: &[char], depth: usize) -> Vec<Vec<String>> {
    let mut lexer =
        Lexer { chars, at: 0, commands: Vec::new(), documents: Vec::new(), line_began: 0 };
    while lexer.at < chars.len() {
        lexer.list(depth);
    }
    lexer.commands
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    commands: Vec<Vec<String>>,
    /// Delimiters of the here-documents that begin behind this line.
    documents: Vec<String>,
    /// How many commands there were when this line began.
    line_began: usize,
}

const OPERATORS: &str = " \t\r\n;|&()<>";

impl Lexer<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.at += usize::from(next.is_some());
        next
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn takes(&mut self, char: char) -> bool {
        let is_next = self.peek() == Some(char);
        self.at += usize::from(is_next);
        is_next
    }

    /// Up to and with the `)` that closes it, or to the end.
    fn list(&mut self, depth: usize) {
        let mut words = Vec::new();
        let mut open = 0_usize;
        while let Some(char) = self.peek() {
            match char {
                '<' | '>' => self.redirection(&mut words, depth),
                '#' => {
                    while self.peek().is_some_and(|char| char != '\n') {
                        self.at += 1;
                    }
                }
                '\\' if self.chars.get(self.at + 1) == Some(&'\n') => self.at += 2,
                char if !OPERATORS.contains(char) => self.argument(&mut words, depth),
                char => {
                    self.at += 1;
                    match char {
                        ' ' | '\t' | '\r' => continue,
                        // `&>` is a redirection.
                        '&' if self.peek() == Some('>') => continue,
                        _ => self.command(&mut words),
                    }
                    match char {
                        '\n' => self.skip_documents(depth),
                        '(' => open += 1,
                        ')' if open == 0 => return,
                        ')' => open -= 1,
                        _ => {}
                    }
                }
            }
        }
        self.command(&mut words);
    }

    fn argument(&mut self, words: &mut Vec<String>, depth: usize) {
        let word = self.word(depth);
        let is_descriptor = self.peek().is_some_and(|char| "<>".contains(char))
            && word.chars().all(|char| char.is_ascii_digit());
        if !is_descriptor {
            words.push(word);
        }
    }

    /// At a `<` or `>`. What is redirected to is no argument.
    fn redirection(&mut self, words: &mut Vec<String>, depth: usize) {
        let is_input = self.takes('<');
        if !is_input {
            self.at += 1;
        }
        // `<(…)` and `>(…)` hold commands.
        if self.takes('(') {
            return self.nested(depth);
        }
        if is_input && self.takes('<') {
            if self.takes('<') {
                self.blanks();
                // A line for the program's stdin, and so perhaps a command.
                return self.argument(words, depth);
            }
            self.takes('-');
            self.blanks();
            let delimiter = self.word(depth);
            self.documents.push(delimiter);
            return;
        }
        while self.takes('<') || self.takes('>') || self.takes('|') {}
        if self.takes('&') && self.takes('-') {
            return;
        }
        self.blanks();
        self.word(depth);
    }

    fn blanks(&mut self) {
        while self.peek().is_some_and(|char| " \t".contains(char)) {
            self.at += 1;
        }
    }

    /// Behind a line: its here-documents. They hold commands only where a shell reads them.
    fn skip_documents(&mut self, depth: usize) {
        let line = &self.commands[self.line_began.min(self.commands.len())..];
        let is_for_a_shell =
            line.iter().flatten().any(|word| SHELLS.contains(&basename(word.as_str())));
        for delimiter in std::mem::take(&mut self.documents) {
            let from = self.at;
            let mut until = self.at;
            while self.at < self.chars.len() {
                let rest = &self.chars[self.at..];
                let length = rest.iter().position(|char| *char == '\n').unwrap_or(rest.len());
                let line: String = rest[..length].iter().collect();
                self.at = (self.at + length + 1).min(self.chars.len());
                if line.trim_start_matches('\t') == delimiter {
                    break;
                }
                until = self.at;
            }
            if is_for_a_shell && depth < MAX_DEPTH {
                let mut inner = commands_of(&self.chars[from..until], depth + 1);
                self.commands.append(&mut inner);
            }
        }
        self.line_began = self.commands.len();
    }

    /// A list of its own, while that many can be.
    fn nested(&mut self, depth: usize) {
        if depth < MAX_DEPTH {
            self.list(depth + 1);
        }
    }

    fn command(&mut self, words: &mut Vec<String>) {
        let words = std::mem::take(words);
        let from = if words.first().is_some_and(|first| first == "function") { 2 } else { 0 };
        let words = words.get(from..).unwrap_or_default();
        let is_prefix = |word: &&String| RESERVED.contains(&word.as_str()) || is_assignment(word);
        let from = words.iter().take_while(is_prefix).count();
        if from < words.len() {
            self.commands.push(words[from..].to_vec());
        }
    }

    fn word(&mut self, depth: usize) -> String {
        let mut word = String::new();
        while let Some(char) = self.peek().filter(|char| !OPERATORS.contains(*char)) {
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
                // Quotes of another kind.
                '$' if matches!(self.peek(), Some('\'' | '"')) => {}
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
        if char == '$' {
            if depth < MAX_DEPTH && self.takes('(') {
                self.nested(depth);
            }
            return;
        }
        let mut line = Vec::new();
        while let Some(char) = self.next().filter(|&char| char != '`') {
            match char {
                '\\' => line.extend(self.next()),
                char => line.push(char),
            }
        }
        if depth < MAX_DEPTH {
            self.commands.append(&mut commands_of(&line, depth + 1));
        }
    }
}

/// `NAME=…` or `NAME+=…`.
fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        let name = name.strip_suffix('+').unwrap_or(name);
        !name.is_empty()
            && !name.starts_with(|char: char| char.is_ascii_digit())
            && name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(argv: &[&str]) -> Vec<String> {
        let argv: Vec<_> = argv.iter().map(|word| (*word).to_owned()).collect();
        let mut seen = Vec::new();
        each_command(&argv, &mut |words: &[String]| seen.push(words.join(" "))).unwrap();
        seen
    }

    fn lexed(line: &str) -> Vec<String> {
        commands(line).iter().map(|words| words.join(" ")).collect()
    }

    fn split_plainly(text: &str) -> Vec<String> {
        let char = |char: &Char| match char {
            Char::Star => '★',
            Char::Literal(char) => *char,
        };
        split(text).unwrap().iter().map(|word| word.iter().map(char).collect()).collect()
    }

    #[test]
    fn a_pattern_is_split_as_a_shell_does() {
        assert_eq!(
            split_plainly(r#"git  push "a b" 'c d' e\ f"#),
            ["git", "push", "a b", "c d", "e f"]
        );
        assert_eq!(split_plainly(r#"'' """#), ["", ""]);
        assert_eq!(split_plainly(r#"$HOME `x` "\$a\b""#), ["$HOME", "`x`", r"$a\b"]);
        assert!(split_plainly(" \t").is_empty());
    }

    #[test]
    fn a_quoted_star_is_a_star() {
        assert_eq!(split_plainly(r#"* '*' "*" \* a*"#), ["★", "*", "*", "*", "a★"]);
    }

    #[test]
    fn open_quotes_are_an_error() {
        for text in ["'a", "\"a", "\"a\\", "a\\"] {
            assert!(split(text).is_err(), "{text}");
        }
    }

    #[test]
    fn operators_part_commands() {
        let line = "a 1;b&&c||d|e&f\ng";
        assert_eq!(lexed(line), ["a 1", "b", "c", "d", "e", "f", "g"]);
        assert_eq!(lexed("(a; b) && { c; }"), ["a", "b", "c"]);
        assert_eq!(lexed("a \\\n b"), ["a b"]);
    }

    #[test]
    fn quotes_keep_operators_in_words() {
        assert_eq!(lexed(r#"echo 'a;b' "c|d" e\;f"#), ["echo a;b c|d e;f"]);
        assert_eq!(lexed(r#"g"i"t 'pu'sh $'x' "a\"b""#), ["git push x a\"b"]);
    }

    #[test]
    fn substitutions_are_commands_too() {
        assert_eq!(lexed("echo $(a b) c"), ["a b", "echo $ c"]);
        assert_eq!(lexed("echo \"x $(a \"b c\") y\""), ["a b c", "echo x $ y"]);
        assert_eq!(lexed("echo `a \\`b\\``"), ["b", "a `", "echo `"]);
        assert_eq!(lexed("diff <(a) >(b)"), ["a", "b", "diff"]);
        assert_eq!(lexed("echo $((1 + 2)) git push"), ["1 + 2", "echo $ git push"]);
        assert_eq!(lexed("echo '$(a)'"), ["echo $(a)"]);
    }

    #[test]
    fn words_of_the_language_are_no_programs() {
        assert_eq!(lexed("if a; then b; else c; fi"), ["a", "b", "c", "fi"]);
        assert_eq!(lexed("while ! a; do b; done"), ["a", "b", "done"]);
        assert_eq!(lexed("f() { a; }"), ["f", "a"]);
        assert_eq!(lexed("function f { a; }"), ["a"]);
        assert_eq!(lexed("case x in y) a;; esac"), ["case x in y", "a", "esac"]);
        assert_eq!(lexed("A=1 B+=2 a C=3"), ["a C=3"]);
        assert_eq!(lexed("a # b; c\nd"), ["a", "d"]);
        assert_eq!(lexed("a#b"), ["a#b"]);
    }

    #[test]
    fn redirections_are_no_arguments() {
        assert_eq!(lexed("a >x 2>&1 b <y >>z &>w c 2>&- d"), ["a b c d"]);
        assert_eq!(lexed("> x a"), ["a"]);
    }

    #[test]
    fn here_documents_are_no_commands_but_for_a_shell() {
        assert_eq!(lexed("cat <<E >x\ndon't a\nE\nb"), ["cat", "b"]);
        assert_eq!(lexed("cat <<-'E'\n\ta\n\tE\nb"), ["cat", "b"]);
        assert_eq!(lexed("cat <<E | bash\na\nE\nb"), ["cat", "bash", "a", "b"]);
        assert_eq!(lexed("cat <<E"), ["cat"]);
        assert_eq!(seen(&["sh", "-c", "bash <<< 'git push'"]).last().unwrap(), "git push");
    }

    #[test]
    fn what_carries_a_command_is_looked_into() {
        assert!(seen(&["env", "A=1", "git", "push"]).contains(&"git push".to_owned()));
        assert!(
            seen(&["/usr/bin/sudo", "-u", "x", "git", "push"]).contains(&"git push".to_owned())
        );
        assert!(seen(&["bash", "-ec", "cd x && git push"]).contains(&"git push".to_owned()));
        let nested = ["timeout", "5", "sh", "-c", "eval git push"];
        assert!(seen(&nested).contains(&"git push".to_owned()));
        assert_eq!(seen(&["echo", "git", "push"]), ["echo git push"]);
    }

    #[test]
    fn there_is_an_end_to_what_is_looked_at() {
        let many = "a;".repeat(MAX_COMMANDS + 1);
        let argv = ["sh", "-c", &many].map(str::to_owned);
        assert_eq!(each_command(&argv, &mut |_: &[String]| ()), Err(TooMany));
        let deep = "$(".repeat(10_000) + "git push";
        assert!(lexed(&deep).contains(&"git push".to_owned()));
        let deep = "eval ".repeat(MAX_DEPTH + 2);
        let argv = ["sh", "-c", &deep].map(str::to_owned);
        assert_eq!(each_command(&argv, &mut |_: &[String]| ()), Err(TooMany));
    }
}
