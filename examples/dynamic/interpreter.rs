//! The interpreter: it walks the tree.
//!
//! Each statement, block and call has a [`Scope`] of its own, in which its values are held. A result leaves its scope bare, and is held by the next one out before anything can collect.

use super::foreign::Kept;
use super::source::{Fault, Position};
use super::syntax::{Block, Expression, ExpressionKind, Operator, Program, Statement};
use super::value::{Bare, Held, Value};
use super::vm::{Kind, ScriptVm, allocate, cells, occasion, text};
use core::cmp::Ordering;
use reentry::dynamic::Function;
use reentry::testkit::heap::Ref;
use reentry::{Local, Mutator, Scope, World};
use std::sync::{Arc, Mutex};

/// How deep functions call one another.
const DEEPEST: usize = 400;

/// A program that is linked, and what it has given to C to keep.
pub(crate) struct Interpreter {
    pub(crate) program: Program,
    /// The functions of C, by their numbers.
    pub(crate) functions: Vec<Function>,
    pub(crate) kept: Mutex<Vec<Kept>>,
    pub(crate) world: World<ScriptVm>,
}

/// What comes after a statement.
enum Flow {
    Next,
    Return(Bare),
}

/// The object of a variable's block.
type Environment<'s> = Local<'s, Ref>;

impl Interpreter {
    /// Runs the program.
    pub(crate) fn run(self: &Arc<Self>, mutator: &mut Mutator<ScriptVm>) -> Result<(), Fault> {
        mutator.scope(|scope| {
            let environment = cells(scope, None, self.program.main.slots);
            self.statements(scope, environment, &self.program.main.statements).map(drop)
        })
    }

    fn statements(
        self: &Arc<Self>,
        scope: &mut Scope<'_, ScriptVm>,
        environment: Environment<'_>,
        statements: &[Statement],
    ) -> Result<Flow, Fault> {
        for statement in statements {
            let flow = scope.scope(|inner| {
                let environment = inner.root(inner.get(environment));
                self.statement(inner, environment, statement)
            })?;
            if let Flow::Return(value) = flow {
                return Ok(Flow::Return(value));
            }
        }
        Ok(Flow::Next)
    }

    fn block(
        self: &Arc<Self>,
        scope: &mut Scope<'_, ScriptVm>,
        environment: Environment<'_>,
        block: &Block,
    ) -> Result<Flow, Fault> {
        scope.scope(|inner| {
            let environment = cells(inner, Some(environment), block.slots);
            self.statements(inner, environment, &block.statements)
        })
    }

    fn statement<'s>(
        self: &Arc<Self>,
        scope: &mut Scope<'s, ScriptVm>,
        environment: Environment<'s>,
        statement: &Statement,
    ) -> Result<Flow, Fault> {
        match statement {
            Statement::Expression(expression) => {
                self.value(scope, environment, expression)?;
            }
            Statement::Let(slot, expression) => {
                let value = self.value(scope, environment, expression)?.bare(scope);
                scope.vm().set_cell(scope.get(environment), *slot, value);
            }
            Statement::Assign(target, expression) => {
                self.assign(scope, environment, target, expression)?;
            }
            Statement::If(condition, then, otherwise) => {
                if self.condition(scope, environment, condition)? {
                    return self.block(scope, environment, then);
                }
                if let Some(otherwise) = otherwise {
                    return self.block(scope, environment, otherwise);
                }
            }
            Statement::While(condition, block) => {
                // What a turn holds ends with the turn.
                while scope.scope(|inner| {
                    let environment = inner.root(inner.get(environment));
                    self.condition(inner, environment, condition)
                })? {
                    scope.poll();
                    if let Flow::Return(value) = self.block(scope, environment, block)? {
                        return Ok(Flow::Return(value));
                    }
                }
            }
            Statement::Return(None) => return Ok(Flow::Return(Value::Nil)),
            Statement::Return(Some(expression)) => {
                return Ok(Flow::Return(self.value(scope, environment, expression)?.bare(scope)));
            }
            Statement::Block(block) => return self.block(scope, environment, block),
        }
        Ok(Flow::Next)
    }

    fn assign<'s>(
        self: &Arc<Self>,
        scope: &mut Scope<'s, ScriptVm>,
        environment: Environment<'s>,
        target: &Expression,
        expression: &Expression,
    ) -> Result<(), Fault> {
        if let ExpressionKind::Index(parts) = &target.kind {
            let [list, index] = &**parts;
            let list = self.value(scope, environment, list)?;
            let index = self.value(scope, environment, index)?;
            let value = self.value(scope, environment, expression)?.bare(scope);
            let (cells, index) = self.element(scope, list, index, target.at)?;
            scope.vm().set_cell(cells, index, value);
            return Ok(());
        }
        let value = self.value(scope, environment, expression)?.bare(scope);
        if let ExpressionKind::Variable { blocks_out, slot } = target.kind {
            let vm = scope.vm();
            vm.set_cell(block_of(vm, scope.get(environment), blocks_out), slot, value);
        }
        Ok(())
    }

    fn condition<'s>(
        self: &Arc<Self>,
        scope: &mut Scope<'s, ScriptVm>,
        environment: Environment<'s>,
        expression: &Expression,
    ) -> Result<bool, Fault> {
        match self.value(scope, environment, expression)? {
            Value::Bool(value) => Ok(value),
            other => Err(Fault::new(
                expression.at,
                format!("true or false was expected, and {} came", self.name_of(scope, other)),
            )),
        }
    }

    /// Where an element of a list is.
    fn element(
        &self,
        scope: &Mutator<ScriptVm>,
        list: Held<'_>,
        index: Held<'_>,
        at: Position,
    ) -> Result<(Ref, usize), Fault> {
        let vm = scope.vm();
        let object = match list.bare(scope) {
            Value::Object(object) if vm.kind(object) == Kind::List => object,
            _ => {
                return Err(Fault::new(
                    at,
                    format!("{} has no elements; read a buffer with `read`", self.name_of(scope, list)),
                ));
            }
        };
        let length = vm.number(object);
        match index {
            Value::Int(index) if (0..length as i64).contains(&index) => {
                Ok((vm.first(object), index as usize))
            }
            _ => Err(Fault::new(
                at,
                format!("the list has {length} elements, and none is {}", self.describe(scope, index)),
            )),
        }
    }

    /// Evaluates an expression. Its value is held by `scope`.
    pub(crate) fn value<'s>(
        self: &Arc<Self>,
        scope: &mut Scope<'s, ScriptVm>,
        environment: Environment<'s>,
        expression: &Expression,
    ) -> Result<Held<'s>, Fault> {
        let at = expression.at;
        Ok(match &expression.kind {
            ExpressionKind::Nil => Value::Nil,
            ExpressionKind::Bool(value) => Value::Bool(*value),
            ExpressionKind::Int(value) => Value::Int(*value),
            ExpressionKind::Float(value) => Value::Float(*value),
            ExpressionKind::Text(value) => Value::Object(text(scope, value)),
            ExpressionKind::Variable { blocks_out, slot } => {
                let vm = scope.vm();
                vm.cell(block_of(vm, scope.get(environment), *blocks_out), *slot).hold(scope)
            }
            ExpressionKind::Foreign(number) => {
                Value::pointer(self.functions[*number].address().expose_provenance())
            }
            ExpressionKind::Builtin(builtin) => {
                return Err(Fault::new(at, format!("`{}` can only be called", builtin.name())));
            }
            ExpressionKind::List(elements) => self.list(scope, environment, elements)?,
            ExpressionKind::Function(code) => {
                let number = (*code as u64).to_ne_bytes();
                Value::Object(allocate(scope, Kind::Function, &[environment], 0, &number))
            }
            ExpressionKind::Not(operand) => Value::Bool(!self.condition(scope, environment, operand)?),
            ExpressionKind::Negative(operand) => match self.value(scope, environment, operand)? {
                Value::Int(value) => {
                    Value::Int(value.checked_neg().ok_or_else(|| Fault::new(at, "the number is too large"))?)
                }
                Value::Float(value) => Value::Float(-value),
                other => {
                    let came = self.name_of(scope, other);
                    return Err(Fault::new(at, format!("`-` takes a number, and {came} came")));
                }
            },
            ExpressionKind::Binary(operator @ (Operator::And | Operator::Or), operands) => {
                let left = self.condition(scope, environment, &operands[0])?;
                if left == (*operator == Operator::Or) {
                    Value::Bool(left)
                } else {
                    Value::Bool(self.condition(scope, environment, &operands[1])?)
                }
            }
            ExpressionKind::Binary(operator, operands) => {
                let left = self.value(scope, environment, &operands[0])?;
                let right = self.value(scope, environment, &operands[1])?;
                self.binary(scope, *operator, left, right).map_err(|message| Fault::new(at, message))?
            }
            ExpressionKind::Index(parts) => {
                let list = self.value(scope, environment, &parts[0])?;
                let index = self.value(scope, environment, &parts[1])?;
                let (cells, index) = self.element(scope, list, index, at)?;
                scope.vm().cell(cells, index).hold(scope)
            }
            ExpressionKind::Call(callee, arguments) => {
                let callee_value = match callee.kind {
                    ExpressionKind::Foreign(_) | ExpressionKind::Builtin(_) => Value::Nil,
                    _ => self.value(scope, environment, callee)?,
                };
                let mut values = Vec::with_capacity(arguments.len());
                for argument in arguments {
                    values.push(self.value(scope, environment, argument)?);
                }
                match callee.kind {
                    ExpressionKind::Foreign(number) => {
                        self.call_foreign(scope, number, &values, at, arguments)?
                    }
                    ExpressionKind::Builtin(builtin) => {
                        self.call_builtin(scope, builtin, &values, at, arguments)?
                    }
                    _ => self.call(scope, callee_value, &values, at)?,
                }
            }
        })
    }

    fn list<'s>(
        self: &Arc<Self>,
        scope: &mut Scope<'s, ScriptVm>,
        environment: Environment<'s>,
        elements: &[Expression],
    ) -> Result<Held<'s>, Fault> {
        let storage = cells(scope, None, elements.len());
        for (index, element) in elements.iter().enumerate() {
            let value = self.value(scope, environment, element)?.bare(scope);
            scope.vm().set_cell(scope.get(storage), index, value);
        }
        let length = (elements.len() as u64).to_ne_bytes();
        Ok(Value::Object(allocate(scope, Kind::List, &[storage], 0, &length)))
    }

    /// Calls a function of the script.
    pub(crate) fn call<'s>(
        self: &Arc<Self>,
        scope: &mut Scope<'s, ScriptVm>,
        callee: Held<'_>,
        arguments: &[Held<'_>],
        at: Position,
    ) -> Result<Held<'s>, Fault> {
        let function = match callee {
            Value::Object(local) if self.is_function(scope, callee) => local,
            _ => {
                let came = self.name_of(scope, callee);
                return Err(Fault::new(at, format!("{came} is not a function")));
            }
        };
        let code = &self.program.codes[scope.vm().number(scope.get(function))];
        if code.parameters != arguments.len() {
            let (name, takes, came) = (&code.name, code.parameters, arguments.len());
            return Err(Fault::new(at, format!("`{name}` takes {takes} argument(s), and {came} came")));
        }
        if scope.local().depth == DEEPEST {
            return Err(Fault::new(at, format!("functions call one another more than {DEEPEST} deep")));
        }
        scope.local_mut().depth += 1;
        let outcome = scope.scope(|inner| {
            let defined_in = inner.root(inner.vm().first(inner.get(function)));
            let environment = cells(inner, Some(defined_in), code.block.slots);
            for (index, argument) in arguments.iter().enumerate() {
                inner.vm().set_cell(inner.get(environment), index, argument.bare(inner));
            }
            self.statements(inner, environment, &code.block.statements)
        });
        scope.local_mut().depth -= 1;
        match outcome {
            Ok(Flow::Return(value)) => Ok(value.hold(scope)),
            Ok(Flow::Next) => Ok(Value::Nil),
            Err(fault) => Err(fault.passing(at, || format!("`{}`", code.name))),
        }
    }

    fn binary<'s>(
        &self,
        scope: &mut Scope<'s, ScriptVm>,
        operator: Operator,
        left: Held<'s>,
        right: Held<'s>,
    ) -> Result<Held<'s>, String> {
        use Operator::{Add, Divide, Equal, Multiply, Remainder, Subtract, Unequal};
        if matches!(operator, Equal | Unequal) {
            return Ok(Value::Bool(self.equal(scope, left, right) == (operator == Equal)));
        }
        if operator == Add && (self.is_text(scope, left) || self.is_text(scope, right)) {
            let joined = self.describe(scope, left) + &self.describe(scope, right);
            return Ok(Value::Object(text(scope, &joined)));
        }
        let ordering = match (left, right) {
            (Value::Int(a), Value::Int(b)) => {
                let result = match operator {
                    Add => a.checked_add(b),
                    Subtract => a.checked_sub(b),
                    Multiply => a.checked_mul(b),
                    Divide | Remainder if b == 0 => return Err("a division by zero".to_owned()),
                    Divide => a.checked_div(b),
                    Remainder => a.checked_rem(b),
                    _ => return Ok(compared(operator, Some(a.cmp(&b)))),
                };
                return result.map(Value::Int).ok_or_else(|| "the number is too large".to_owned());
            }
            (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_)) => {
                let float = |value: Held<'s>| match value {
                    Value::Int(value) => value as f64,
                    Value::Float(value) => value,
                    _ => f64::NAN,
                };
                let (a, b) = (float(left), float(right));
                return Ok(match operator {
                    Add => Value::Float(a + b),
                    Subtract => Value::Float(a - b),
                    Multiply => Value::Float(a * b),
                    Divide => Value::Float(a / b),
                    Remainder => Value::Float(a % b),
                    _ => compared(operator, a.partial_cmp(&b)),
                });
            }
            (Value::Object(a), Value::Object(b))
                if self.is_text(scope, left) && self.is_text(scope, right) =>
            {
                let vm = scope.vm();
                let (a, b) = (vm.text(scope.get(a)), vm.text(scope.get(b)));
                Some(a.cmp(&b))
            }
            _ => None,
        };
        if ordering.is_none() || matches!(operator, Add | Subtract | Multiply | Divide | Remainder) {
            let (left, right) = (self.name_of(scope, left), self.name_of(scope, right));
            return Err(format!("`{}` does not take {left} and {right}", operator.sign()));
        }
        Ok(compared(operator, ordering))
    }

    fn equal(&self, scope: &Mutator<ScriptVm>, left: Held<'_>, right: Held<'_>) -> bool {
        match (left.bare(scope), right.bare(scope)) {
            (Value::Nil, Value::Nil) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Int(a), Value::Float(b)) | (Value::Float(b), Value::Int(a)) => a as f64 == b,
            (Value::Float(a), Value::Float(b)) => a == b,
            (Value::Pointer(a), Value::Pointer(b)) => a == b,
            (Value::Object(a), Value::Object(b)) => {
                let vm = scope.vm();
                let texts = vm.kind(a) == Kind::Text && vm.kind(b) == Kind::Text;
                a == b || (texts && vm.compare(a, b) == Ordering::Equal)
            }
            _ => false,
        }
    }

    pub(crate) fn is(&self, mutator: &Mutator<ScriptVm>, value: Held<'_>, kind: Kind) -> bool {
        matches!(value.bare(mutator), Value::Object(object) if mutator.vm().kind(object) == kind)
    }

    fn is_text(&self, mutator: &Mutator<ScriptVm>, value: Held<'_>) -> bool {
        self.is(mutator, value, Kind::Text)
    }

    pub(crate) fn is_function(&self, mutator: &Mutator<ScriptVm>, value: Held<'_>) -> bool {
        self.is(mutator, value, Kind::Function)
    }

    /// What a value is, for errors.
    pub(crate) fn name_of(&self, mutator: &Mutator<ScriptVm>, value: Held<'_>) -> String {
        match value.bare(mutator) {
            Value::Nil => "nil".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(_) | Value::Float(_) => format!("the number {}", self.describe(mutator, value)),
            Value::Pointer(_) => "a pointer".to_owned(),
            Value::Object(object) => match mutator.vm().kind(object) {
                Kind::Text => "a string",
                Kind::Buffer => "a buffer",
                Kind::List => "a list",
                Kind::Function => "a function",
                Kind::Kept => "a kept function",
                Kind::Cells => "a block's variables",
            }
            .to_owned(),
        }
    }

    /// A value as `print` shows it.
    pub(crate) fn describe(&self, mutator: &Mutator<ScriptVm>, value: Held<'_>) -> String {
        self.describe_bare(mutator.vm(), value.bare(mutator), 0)
    }

    fn describe_bare(&self, vm: &ScriptVm, value: Bare, depth: usize) -> String {
        match value {
            Value::Nil => "nil".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => format!("{value:?}"),
            Value::Pointer(value) => format!("pointer({value:#x})"),
            Value::Object(object) => match vm.kind(object) {
                Kind::Text => vm.text(object),
                Kind::Buffer => format!("buffer({})", vm.length(object)),
                Kind::List if depth == 4 => "[...]".to_owned(),
                Kind::List => {
                    let storage = vm.first(object);
                    let elements: Vec<_> = (0..vm.number(object))
                        .map(|index| self.describe_bare(vm, vm.cell(storage, index), depth + 1))
                        .collect();
                    format!("[{}]", elements.join(", "))
                }
                Kind::Function => self.program.codes[vm.number(object)].name.clone(),
                Kind::Kept | Kind::Cells => "keep(fn)".to_owned(),
            },
        }
    }

    /// Appends to a list. A safepoint.
    pub(crate) fn push(&self, scope: &mut Scope<'_, ScriptVm>, list: Local<'_, Ref>, value: Held<'_>) {
        occasion(scope);
        let vm = scope.vm();
        let object = scope.get(list);
        let (length, room) = (vm.number(object), vm.room(vm.first(object)));
        if length == room {
            scope.scope(|inner| {
                let larger = cells(inner, None, (room * 2).max(4));
                let (vm, object, larger) = (inner.vm(), inner.get(list), inner.get(larger));
                for index in 0..length {
                    vm.set_cell(larger, index, vm.cell(vm.first(object), index));
                }
                vm.set_first(object, larger);
            });
        }
        let (vm, object) = (scope.vm(), scope.get(list));
        vm.set_cell(vm.first(object), length, value.bare(scope));
        vm.set_number(object, length + 1);
    }
}

/// The variables of a block so many blocks out.
fn block_of(vm: &ScriptVm, environment: Ref, blocks_out: usize) -> Ref {
    (0..blocks_out).fold(environment, |block, _| vm.first(block))
}

fn compared<'s>(operator: Operator, ordering: Option<Ordering>) -> Held<'s> {
    Value::Bool(ordering.is_some_and(|ordering| match operator {
        Operator::Less => ordering.is_lt(),
        Operator::LessOrEqual => ordering.is_le(),
        Operator::Greater => ordering.is_gt(),
        _ => ordering.is_ge(),
    }))
}
