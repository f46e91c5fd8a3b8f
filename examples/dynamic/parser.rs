//! From tokens to the tree: recursive descent, and precedence climbing for operators.

use super::lexer::{Lexer, Token, TokenKind};
use super::source::{Fault, Position};
use super::syntax::{
    Block, Builtin, Code, Declaration, Expression, ExpressionKind, Operator, Program, Statement,
};
use reentry::dynamic::{SignatureError, Types};

/// How deep expressions and blocks nest.
const DEEPEST: usize = 100;

const KEYWORDS: &[&str] = &["let", "fn", "if", "else", "while", "return", "extern", "true", "false", "nil"];

/// Reads a script.
pub(crate) fn parse(text: &str) -> Result<Program, Fault> {
    let mut lexer = Lexer::new(text);
    let token = lexer.next()?;
    let mut parser = Parser {
        lexer,
        token,
        blocks: vec![Vec::new()],
        depth: 0,
        codes: Vec::new(),
        declarations: Vec::new(),
        types: Types::new(),
    };
    let mut statements = Vec::new();
    while parser.token.kind != TokenKind::End {
        if parser.is_name("extern") {
            parser.foreign()?;
        } else {
            statements.extend(parser.statement()?);
        }
    }
    let main = Block { slots: parser.blocks[0].len(), statements };
    let Parser { codes, declarations, types, .. } = parser;
    Ok(Program { main, codes, declarations, types })
}

/// The place in a script of an error in C that begins at `start`.
pub(crate) fn place(start: Position, error: &SignatureError) -> Position {
    if error.line() == 1 {
        return Position { line: start.line, column: start.column + error.column() - 1 };
    }
    Position { line: start.line + error.line() - 1, column: error.column() }
}

struct Parser<'s> {
    lexer: Lexer<'s>,
    token: Token<'s>,
    /// The names of the blocks that are open, outermost first.
    blocks: Vec<Vec<String>>,
    depth: usize,
    codes: Vec<Code>,
    declarations: Vec<Declaration>,
    types: Types,
}

impl<'s> Parser<'s> {
    fn advance(&mut self) -> Result<Token<'s>, Fault> {
        let next = self.lexer.next()?;
        Ok(core::mem::replace(&mut self.token, next))
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.token.kind, TokenKind::Sign(found) if found == sign)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.token.kind, TokenKind::Name(found) if found == name)
    }

    /// Takes a sign if it comes next.
    fn takes(&mut self, sign: &str) -> Result<bool, Fault> {
        let found = self.is_sign(sign);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn unexpected<T>(&self, wanted: &str) -> Result<T, Fault> {
        let came = self.token.kind.describe();
        Err(Fault::new(self.token.at, format!("{wanted} was expected, and {came} came")))
    }

    fn expect(&mut self, sign: &str) -> Result<(), Fault> {
        if self.takes(sign)? { Ok(()) } else { self.unexpected(&format!("`{sign}`")) }
    }

    fn name(&mut self) -> Result<&'s str, Fault> {
        match self.token.kind {
            TokenKind::Name(name) if !KEYWORDS.contains(&name) => {
                self.advance()?;
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.depth == DEEPEST {
            return Err(Fault::new(self.token.at, format!("this is nested more than {DEEPEST} deep")));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Gives the variable a slot of the innermost block.
    fn declare(&mut self, name: &str) -> usize {
        let block = self.blocks.last_mut().expect("the outermost block is there to the end");
        block.push(name.to_owned());
        block.len() - 1
    }

    /// `extern "library" prototype;` or `extern typedef ...;`
    fn foreign(&mut self) -> Result<(), Fault> {
        self.advance()?;
        let (library, library_at) = match &self.token.kind {
            TokenKind::Text(library) => (Some(library.clone()), self.token.at),
            _ => {
                self.lexer.seek(&self.token);
                (None, self.token.at)
            }
        };
        let (text, start) = self.lexer.declaration()?;
        let wrong = |error: SignatureError| Fault::new(place(start, &error), error.message());
        let Some(library) = library else {
            self.types.declare(text).map_err(wrong)?;
            self.advance()?;
            return Ok(());
        };
        let (name, signature) = self.types.prototype(text).map_err(wrong)?;
        let name_at = whole_word(text, &name).map_or(start, |index| {
            let before = &text[..index];
            let line = before.matches('\n').count();
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
            Position {
                line: start.line + line,
                column: if line == 0 { start.column + column } else { column + 1 },
            }
        });
        self.declarations.push(Declaration { library, library_at, name, name_at, signature });
        self.advance()?;
        Ok(())
    }

    fn statement(&mut self) -> Result<Option<Statement>, Fault> {
        self.deeper(Self::shallow_statement)
    }

    fn shallow_statement(&mut self) -> Result<Option<Statement>, Fault> {
        let statement = match self.token.kind {
            TokenKind::Sign(";") => {
                self.advance()?;
                return Ok(None);
            }
            TokenKind::Sign("{") => return Ok(Some(Statement::Block(self.block(&[])?))),
            TokenKind::Name("if") => return self.branch().map(Some),
            TokenKind::Name("while") => {
                self.advance()?;
                let condition = self.expression()?;
                return Ok(Some(Statement::While(condition, self.block(&[])?)));
            }
            TokenKind::Name("let") => {
                self.advance()?;
                let name = self.name()?;
                self.expect("=")?;
                if self.is_name("fn") {
                    // The name is known in the function: it may call itself.
                    let slot = self.declare(name);
                    Statement::Let(slot, self.function(Some(name))?)
                } else {
                    let value = self.expression()?;
                    Statement::Let(self.declare(name), value)
                }
            }
            TokenKind::Name("return") => {
                self.advance()?;
                let ends = self.is_sign(";") || self.is_sign("}") || self.token.kind == TokenKind::End;
                Statement::Return(if ends { None } else { Some(self.expression()?) })
            }
            TokenKind::Name("extern") => {
                return Err(Fault::new(self.token.at, "`extern` stands at the outermost level only"));
            }
            _ => {
                let expression = self.expression()?;
                let at = self.token.at;
                if self.takes("=")? {
                    if !matches!(expression.kind, ExpressionKind::Variable { .. } | ExpressionKind::Index(_))
                    {
                        return Err(Fault::new(at, "only a variable or an element can be assigned to"));
                    }
                    Statement::Assign(expression, self.expression()?)
                } else {
                    Statement::Expression(expression)
                }
            }
        };
        if !self.is_sign("}") && self.token.kind != TokenKind::End {
            self.expect(";")?;
        }
        Ok(Some(statement))
    }

    fn branch(&mut self) -> Result<Statement, Fault> {
        self.advance()?;
        let condition = self.expression()?;
        let then = self.block(&[])?;
        let mut otherwise = None;
        if self.is_name("else") {
            self.advance()?;
            otherwise = Some(if self.is_name("if") {
                // A block of its own, so that variables are as many blocks out as they say.
                self.blocks.push(Vec::new());
                let statement = self.deeper(Self::branch)?;
                self.blocks.pop();
                Block { slots: 0, statements: vec![statement] }
            } else {
                self.block(&[])?
            });
        }
        Ok(Statement::If(condition, then, otherwise))
    }

    fn block(&mut self, parameters: &[&str]) -> Result<Block, Fault> {
        self.expect("{")?;
        self.blocks.push(parameters.iter().map(|name| (*name).to_owned()).collect());
        let mut statements = Vec::new();
        while !self.is_sign("}") {
            if self.token.kind == TokenKind::End {
                return self.unexpected("`}`");
            }
            statements.extend(self.statement()?);
        }
        self.advance()?;
        let slots = self.blocks.pop().map_or(0, |names| names.len());
        Ok(Block { slots, statements })
    }

    /// `fn(a, b) { ... }`
    fn function(&mut self, name: Option<&str>) -> Result<Expression, Fault> {
        let at = self.advance()?.at;
        self.expect("(")?;
        let mut parameters = Vec::new();
        while !self.is_sign(")") {
            parameters.push(self.name()?);
            if !self.takes(",")? {
                break;
            }
        }
        self.expect(")")?;
        let block = self.deeper(|parser| parser.block(&parameters))?;
        let name = name.map_or_else(|| format!("fn at {at}"), str::to_owned);
        self.codes.push(Code { name, parameters: parameters.len(), block });
        Ok(Expression { at, kind: ExpressionKind::Function(self.codes.len() - 1) })
    }

    fn expression(&mut self) -> Result<Expression, Fault> {
        self.deeper(|parser| parser.operators(0))
    }

    /// Operators that bind more strongly than `least`.
    fn operators(&mut self, least: u8) -> Result<Expression, Fault> {
        let mut left = self.prefixed()?;
        while let TokenKind::Sign(sign) = self.token.kind
            && let Some((operator, binding)) = Operator::of(sign)
            && binding > least
        {
            let at = self.advance()?.at;
            let right = self.operators(binding)?;
            left = Expression { at, kind: ExpressionKind::Binary(operator, Box::new([left, right])) };
        }
        Ok(left)
    }

    fn prefixed(&mut self) -> Result<Expression, Fault> {
        let at = self.token.at;
        if self.takes("!")? {
            let operand = self.deeper(Self::prefixed)?;
            return Ok(Expression { at, kind: ExpressionKind::Not(Box::new(operand)) });
        }
        if self.takes("-")? {
            let operand = self.deeper(Self::prefixed)?;
            return Ok(Expression { at, kind: ExpressionKind::Negative(Box::new(operand)) });
        }
        let mut expression = self.primary()?;
        loop {
            let at = self.token.at;
            if self.takes("(")? {
                let arguments = self.list(")")?;
                // An error of the call is shown where the function stands.
                let at = if matches!(expression.kind, ExpressionKind::Call(..)) { at } else { expression.at };
                expression = Expression { at, kind: ExpressionKind::Call(Box::new(expression), arguments) };
            } else if self.takes("[")? {
                let index = self.expression()?;
                self.expect("]")?;
                expression = Expression { at, kind: ExpressionKind::Index(Box::new([expression, index])) };
            } else {
                return Ok(expression);
            }
        }
    }

    fn list(&mut self, end: &str) -> Result<Vec<Expression>, Fault> {
        let mut list = Vec::new();
        while !self.is_sign(end) {
            list.push(self.expression()?);
            if !self.takes(",")? {
                break;
            }
        }
        self.expect(end)?;
        Ok(list)
    }

    fn primary(&mut self) -> Result<Expression, Fault> {
        if self.is_name("fn") {
            return self.function(None);
        }
        let token = self.token.clone();
        let kind = match token.kind {
            TokenKind::Int(value) => ExpressionKind::Int(value),
            TokenKind::Float(value) => ExpressionKind::Float(value),
            TokenKind::Text(text) => ExpressionKind::Text(text),
            TokenKind::Name("nil") => ExpressionKind::Nil,
            TokenKind::Name("true") => ExpressionKind::Bool(true),
            TokenKind::Name("false") => ExpressionKind::Bool(false),
            TokenKind::Name(name) if !KEYWORDS.contains(&name) => self.resolve(name)?,
            TokenKind::Sign("(") => {
                self.advance()?;
                let expression = self.expression()?;
                self.expect(")")?;
                return Ok(expression);
            }
            TokenKind::Sign("[") => {
                self.advance()?;
                let list = self.list("]")?;
                return Ok(Expression { at: token.at, kind: ExpressionKind::List(list) });
            }
            _ => return self.unexpected("an expression"),
        };
        self.advance()?;
        Ok(Expression { at: token.at, kind })
    }

    fn resolve(&self, name: &str) -> Result<ExpressionKind, Fault> {
        for (blocks_out, block) in self.blocks.iter().rev().enumerate() {
            if let Some(slot) = block.iter().rposition(|known| known == name) {
                return Ok(ExpressionKind::Variable { blocks_out, slot });
            }
        }
        if let Some(number) = self.declarations.iter().rposition(|declared| declared.name == name) {
            return Ok(ExpressionKind::Foreign(number));
        }
        Builtin::of(name).map(ExpressionKind::Builtin).ok_or_else(|| {
            Fault::new(self.token.at, format!("there is no `{name}`; declare it with `let` or `extern`"))
        })
    }
}

/// Where a word stands by itself, followed by `(`.
fn whole_word(text: &str, word: &str) -> Option<usize> {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).map(|(index, _)| index).find(|index| {
        !text[..*index].ends_with(in_word) && text[index + word.len()..].trim_start().starts_with('(')
    })
}
