//! From text to tokens.

use super::source::{Fault, Position};

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum TokenKind<'s> {
    Int(i64),
    Float(f64),
    Text(String),
    /// A name or a keyword.
    Name(&'s str),
    Sign(&'static str),
    End,
}

impl TokenKind<'_> {
    /// As an error names it.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Int(value) => format!("`{value}`"),
            Self::Float(value) => format!("`{value:?}`"),
            Self::Text(_) => "a string".to_owned(),
            Self::Name(name) => format!("`{name}`"),
            Self::Sign(sign) => format!("`{sign}`"),
            Self::End => "the end".to_owned(),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Token<'s> {
    pub(crate) at: Position,
    /// The byte where it begins.
    pub(crate) start: usize,
    pub(crate) kind: TokenKind<'s>,
}

/// Longer ones first.
const SIGNS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "+", "-", "*", "/", "%", "<", ">", "=", "!", "(", ")", "{", "}", "[",
    "]", ",", ";",
];

pub(crate) struct Lexer<'s> {
    text: &'s str,
    offset: usize,
    at: Position,
}

impl<'s> Lexer<'s> {
    pub(crate) fn new(text: &'s str) -> Self {
        Self { text, offset: 0, at: Position { line: 1, column: 1 } }
    }

    fn rest(&self) -> &'s str {
        &self.text[self.offset..]
    }

    /// Takes so many bytes, which end between characters.
    fn take(&mut self, bytes: usize) -> &'s str {
        let taken = &self.rest()[..bytes];
        self.offset += bytes;
        for c in taken.chars() {
            if c == '\n' {
                self.at = Position { line: self.at.line + 1, column: 1 };
            } else {
                self.at.column += 1;
            }
        }
        taken
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'s str {
        let rest = self.rest();
        self.take(rest.find(|c| !accept(c)).unwrap_or(rest.len()))
    }

    /// Takes blanks and comments.
    fn skip(&mut self) {
        loop {
            self.take_while(char::is_whitespace);
            if !self.rest().starts_with("//") {
                return;
            }
            self.take_while(|c| c != '\n');
        }
    }

    pub(crate) fn next(&mut self) -> Result<Token<'s>, Fault> {
        self.skip();
        let (at, start) = (self.at, self.offset);
        let rest = self.rest();
        let kind = match rest.chars().next() {
            None => TokenKind::End,
            Some('"') => TokenKind::Text(self.string(at)?),
            Some(c) if c.is_ascii_digit() => self.number(at)?,
            Some(c) if c.is_alphabetic() || c == '_' => {
                TokenKind::Name(self.take_while(|c| c.is_alphanumeric() || c == '_'))
            }
            Some(c) => {
                let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
                let sign = sign.ok_or_else(|| Fault::new(at, format!("`{c}` means nothing here")))?;
                self.take(sign.len());
                TokenKind::Sign(sign)
            }
        };
        Ok(Token { at, start, kind })
    }

    fn string(&mut self, at: Position) -> Result<String, Fault> {
        self.take(1);
        let mut text = String::new();
        loop {
            text.push_str(self.take_while(|c| !matches!(c, '"' | '\\')));
            let here = self.at;
            match self.rest().chars().next() {
                Some('"') => {
                    self.take(1);
                    return Ok(text);
                }
                Some('\\') => {
                    self.take(1);
                    let c = self.rest().chars().next().unwrap_or('\n');
                    self.take(c.len_utf8().min(self.rest().len()));
                    text.push(match c {
                        'n' => '\n',
                        't' => '\t',
                        '\\' | '"' => c,
                        // C would take a NUL for the end, so there is no escape for one.
                        _ => {
                            return Err(Fault::new(here, "the escapes are \\n, \\t, \\\\ and \\\""));
                        }
                    });
                }
                _ => return Err(Fault::new(at, "the string does not end")),
            }
        }
    }

    fn number(&mut self, at: Position) -> Result<TokenKind<'s>, Fault> {
        let malformed = |text: &str| Fault::new(at, format!("`{text}` is no number of 64 bits"));
        if self.rest().starts_with("0x") {
            let text = self.take_while(char::is_alphanumeric);
            return i64::from_str_radix(&text[2..], 16).map(TokenKind::Int).map_err(|_| malformed(text));
        }
        let start = self.offset;
        self.take_while(|c| c.is_ascii_digit());
        let mut whole = true;
        if self.rest().starts_with('.') {
            whole = false;
            self.take(1);
            self.take_while(|c| c.is_ascii_digit());
        }
        if self.rest().starts_with(['e', 'E']) {
            whole = false;
            self.take(1);
            if self.rest().starts_with(['+', '-']) {
                self.take(1);
            }
        }
        self.take_while(char::is_alphanumeric);
        let text = &self.text[start..self.offset];
        if whole {
            return text.parse().map(TokenKind::Int).map_err(|_| malformed(text));
        }
        text.parse().map(TokenKind::Float).map_err(|_| malformed(text))
    }

    /// Goes back to a token.
    pub(crate) fn seek(&mut self, token: &Token<'s>) {
        (self.offset, self.at) = (token.start, token.at);
    }

    /// Takes a declaration in C: the text up to the `;` that is in no braces, and where it begins.
    pub(crate) fn declaration(&mut self) -> Result<(&'s str, Position), Fault> {
        let at = self.at;
        let mut depth = 0_usize;
        for (index, c) in self.rest().char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                ';' if depth == 0 => return Ok((self.take(index + 1), at)),
                _ => {}
            }
        }
        Err(Fault::new(at, "the declaration does not end: a `;` is missing"))
    }
}
