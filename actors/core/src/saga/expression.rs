//! Expressions: CEL, deterministic and metered.
//!
//! Invariants: the same text over the same variables gives the same value or error everywhere; an evaluation ends after
//! at most `UNITS_MAX` units of work. For that the parsed tree is rewritten: what a loop runs over passes `@range`,
//! which turns maps into sorted lists and charges every round by the size of its body; what can grow or is compared
//! passes `@charge`, which charges its size. Only the functions listed here exist: none knows a clock, none allocates
//! more than its arguments. Deliberately absent: regular expressions, time, user-defined functions.

use std::{collections::BTreeSet, sync::Arc};

use cel::{
    Context, ExecutionError, FunctionContext, IdedExpr,
    common::{
        ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, ListExpr, LiteralValue, MapExpr, operators},
        types::CelInt,
        value::CowVal,
    },
    parser::Parser,
};
use serde_json::Value;

use super::meter::{Meter, from_json, to_json};

/// Longest expression, bytes.
pub const EXPRESSION_BYTES_MAX: usize = 4 * 1024;
/// Deepest nesting of brackets in an expression.
pub const NESTING_MAX: u16 = 32;
/// What the parser allows itself: more than `too_deep` lets through.
const RECURSION_MAX: u16 = 1_024;
/// Most operators, brackets and dots of an expression: its tree is at most so deep, and walks over it recurse.
pub const OPERATORS_LEN_MAX: u32 = 160;
/// Work of one evaluation, units: about one value visited, or eight bytes of text.
pub const UNITS_MAX: u64 = 100_000;
/// Work of all expressions of one step, units, parsing them and what they read included; so much is also what ends a
/// decision: what is left over is due at once.
pub const WORK_MAX: u64 = 1_000_000;
/// Most expressions of a definition.
pub const EXPRESSIONS_LEN_MAX: u32 = 2_000;
/// The largest tree, nodes.
const NODES_MAX: u32 = 4_096;

/// Functions that may be called, besides operators and macros.
const FUNCTIONS: &[&str] = &["size", "string", "int", "double", "bool", "contains", "startsWith", "endsWith"];
const COMPARISONS: &[&str] = &[
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::GREATER,
    operators::GREATER_EQUALS,
    operators::LESS,
    operators::LESS_EQUALS,
    operators::IN,
    operators::ADD,
];
const OTHER_OPERATORS: &[&str] = &[
    operators::CONDITIONAL,
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::SUBSTRACT,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::NEGATE,
    operators::INDEX,
    operators::NOT_STRICTLY_FALSE,
];
const RANGE: &str = "@range";
const CHARGE: &str = "@charge";

/// What is wrong with an expression's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// What.
    pub message: String,
    /// Characters before the place, where it is known.
    pub offset: u32,
}

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The text is not an expression.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// All expressions of its step together take more than `WORK_MAX`.
    #[error("the expressions of the step take more than {WORK_MAX} units of work")]
    TooMuchTogether,
    /// It takes more than `UNITS_MAX`.
    #[error("it takes more than {UNITS_MAX} units of work")]
    TooMuch,
    /// It has no value over these variables.
    #[error("{0}")]
    NoValue(String),
    /// JSON cannot say it.
    #[error("its value is not one of JSON")]
    NotJson,
}

/// What an expression depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uses {
    /// Variables, `steps` not among them.
    pub variables: BTreeSet<String>,
    /// Steps whose results it names.
    pub steps: BTreeSet<String>,
}

/// A parsed and rewritten expression.
#[derive(Debug)]
pub struct Expression {
    root: IdedExpr,
    /// What it depends on.
    pub uses: Uses,
    /// Whether its value is known to be neither true nor false.
    pub never_bool: bool,
}

impl Expression {
    /// Parses a text.
    ///
    /// # Errors
    /// It is no expression, or one that is not allowed.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.len() > EXPRESSION_BYTES_MAX {
            let message = format!("an expression has at most {EXPRESSION_BYTES_MAX} bytes");
            return Err(Invalid { message, offset: 0 });
        }
        too_deep(text)?;
        let parser = Parser::new().max_recursion_depth(RECURSION_MAX).error_recovery_limit(1);
        let mut root = parser.parse(text).map_err(|errors| {
            let first = errors.errors.into_iter().next();
            let (message, column) = first.map_or_else(Default::default, |error| (error.msg, error.pos.1));
            let message = message.lines().next().unwrap_or("it is not an expression").chars().take(120).collect();
            Invalid { message, offset: u32::try_from(column).unwrap_or(0).saturating_sub(1) }
        })?;
        let mut rewriter = Rewriter::default();
        rewriter.visit(&mut root)?;
        let never_bool = match &root.expr {
            Expr::Literal(literal) => !matches!(literal, LiteralValue::Boolean(_)),
            Expr::Call(call) => call.func_name == CHARGE,
            Expr::Unspecified
            | Expr::Comprehension(_)
            | Expr::Ident(_)
            | Expr::List(_)
            | Expr::Map(_)
            | Expr::Select(_)
            | Expr::Struct(_) => false,
        };
        Ok(Self { root, uses: rewriter.uses, never_bool })
    }

    /// Evaluates it.
    ///
    /// # Errors
    /// It has no value, or costs too much.
    pub fn evaluate(&self, variables: impl IntoIterator<Item = (String, Value)>) -> Result<Value, Failure> {
        self.metered(variables).0
    }

    /// Evaluates it, and tells how many units that took.
    pub(super) fn metered(
        &self,
        variables: impl IntoIterator<Item = (String, Value)>,
    ) -> (Result<Value, Failure>, u64) {
        let meter = Arc::new(Meter::new());
        (self.within(&meter, variables), meter.used())
    }

    fn within(
        &self,
        meter: &Arc<Meter>,
        variables: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<Value, Failure> {
        let mut context = Context::default();
        let (charging, ranging) = (Arc::clone(meter), Arc::clone(meter));
        let charge: cel_function!() = Box::new(move |context| charging.charge(context));
        let range: cel_function!() = Box::new(move |context| ranging.range(context));
        let added = context.add_function(CHARGE, charge).and_then(|()| context.add_function(RANGE, range));
        added.map_err(|error| Failure::NoValue(error.to_string()))?;
        for (name, value) in variables {
            context.add_variable_from_value(name, from_json(value));
        }
        let value = cel::Value::resolve(&self.root, &context);
        // Some operators swallow errors of their operands; a spent budget may not be swallowed.
        if meter.is_spent() {
            return Err(Failure::TooMuch);
        }
        to_json(value.map_err(|error| Failure::NoValue(shown(&error)))?)
    }
}

/// The type that `cel` wants its functions in.
macro_rules! cel_function {
    () => {
        Box<
            dyn for<'c, 'v> Fn(&mut FunctionContext<'c, 'v>) -> Result<CowVal<'c, 'v>, ExecutionError> + Send + Sync,
        >
    };
}
use cel_function;

/// Counts what can make a tree deep before the parser, which recurses over it, sees it: brackets that nest, and all
/// operators (also `in`), dots and brackets, which chain.
fn too_deep(text: &str) -> Result<(), Invalid> {
    let (mut depth, mut operators, mut quote, mut escaped) = (0_u16, 0_u32, None, false);
    let mut word = String::new();
    for (offset, letter) in text.chars().chain([' ']).enumerate() {
        if letter.is_alphanumeric() || letter == '_' {
            word.push(letter);
        } else {
            operators = operators.saturating_add(u32::from(quote.is_none() && word == "in"));
            word.clear();
        }
        match (quote, letter) {
            (Some(_), '\\') if !escaped => {
                escaped = true;
                continue;
            }
            (Some(open), letter) if open == letter && !escaped => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(letter),
            (None, '(' | '[' | '{') => {
                depth = depth.saturating_add(1);
                operators = operators.saturating_add(1);
            }
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
            (None, '+' | '-' | '*' | '/' | '%' | '!' | '<' | '>' | '=' | '&' | '|' | '?' | '.') => {
                operators = operators.saturating_add(1);
            }
            (None, _) => {}
        }
        escaped = false;
        let offset = u32::try_from(offset).unwrap_or(u32::MAX);
        if depth > NESTING_MAX {
            return Err(Invalid { message: format!("an expression nests at most {NESTING_MAX} deep"), offset });
        }
        if operators > OPERATORS_LEN_MAX {
            let message = format!("an expression has at most {OPERATORS_LEN_MAX} operators, brackets and dots");
            return Err(Invalid { message, offset });
        }
    }
    Ok(())
}

/// An error as a text without values in it: they are long, may be secret, and print in the order of a hash map.
fn shown(error: &ExecutionError) -> String {
    let text = if let ExecutionError::NoSuchKey(key) = error {
        format!("there is no key {key}")
    } else if let ExecutionError::UndeclaredReference(name) = error {
        format!("there is no variable {name}")
    } else if let ExecutionError::NoSuchOverload(_) | ExecutionError::FunctionError { .. } = error {
        error.to_string()
    } else if let ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) = error {
        "division by zero".to_owned()
    } else if let ExecutionError::Overflow(..) = error {
        "a number is too large".to_owned()
    } else if let ExecutionError::IndexOutOfBounds(_) = error {
        "an index is beyond the end of its list".to_owned()
    } else {
        "the types do not fit".to_owned()
    };
    text.chars().take(200).collect()
}

#[derive(Default)]
struct Rewriter {
    bound: Vec<String>,
    uses: Uses,
    nodes: u32,
}

fn refused<T>(message: String) -> Result<T, Invalid> {
    Err(Invalid { message, offset: 0 })
}

fn wrap(expr: &mut IdedExpr, function: &str, weight: Option<u32>) {
    let id = expr.id;
    let mut args = vec![std::mem::take(expr)];
    if let Some(weight) = weight {
        let weight = LiteralValue::Int(CelInt::from(i64::from(weight)));
        args.push(IdedExpr { id, expr: Expr::Literal(weight) });
    }
    *expr = IdedExpr { id, expr: Expr::Call(CallExpr { func_name: function.to_owned(), target: None, args }) };
}

impl Rewriter {
    fn visit(&mut self, expr: &mut IdedExpr) -> Result<(), Invalid> {
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > NODES_MAX {
            return refused("the expression is too large".to_owned());
        }
        match &mut expr.expr {
            Expr::Literal(LiteralValue::Bytes(_)) => return refused("bytes are not allowed".to_owned()),
            Expr::Literal(_) => {}
            Expr::Unspecified => return refused("it is not an expression".to_owned()),
            Expr::Struct(_) => return refused("there are no message types".to_owned()),
            Expr::Ident(name) => self.ident(&name.clone())?,
            Expr::Select(select) => {
                if is_free(&select.operand, "steps") && !self.bound.iter().any(|name| name == "steps") {
                    self.uses.steps.insert(select.field.clone());
                } else {
                    self.visit(&mut select.operand)?;
                }
            }
            Expr::List(list) => {
                self.list(list)?;
                wrap(expr, CHARGE, None);
            }
            Expr::Map(map) => {
                self.map(map)?;
                wrap(expr, CHARGE, None);
            }
            Expr::Call(call) => {
                let grows = self.call(call)?;
                if grows {
                    wrap(expr, CHARGE, None);
                }
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension)?,
        }
        Ok(())
    }

    fn ident(&mut self, name: &str) -> Result<(), Invalid> {
        if self.bound.iter().any(|bound| bound == name) || name.starts_with('@') {
            return Ok(());
        }
        if name == "steps" {
            return refused("name the step: steps.<id>".to_owned());
        }
        self.uses.variables.insert(name.to_owned());
        Ok(())
    }

    fn list(&mut self, list: &mut ListExpr) -> Result<(), Invalid> {
        if !list.optional_indices.is_empty() {
            return refused("optional elements are not allowed".to_owned());
        }
        list.elements.iter_mut().try_for_each(|element| self.visit(element))
    }

    fn map(&mut self, map: &mut MapExpr) -> Result<(), Invalid> {
        for entry in &mut map.entries {
            match &mut entry.expr {
                EntryExpr::MapEntry(entry) if !entry.optional => {
                    self.visit(&mut entry.key)?;
                    self.visit(&mut entry.value)?;
                }
                EntryExpr::MapEntry(_) | EntryExpr::StructField(_) => {
                    return refused("optional entries are not allowed".to_owned());
                }
            }
        }
        Ok(())
    }

    /// Returns whether the result can be larger than the arguments.
    fn call(&mut self, call: &mut CallExpr) -> Result<bool, Invalid> {
        let name = call.func_name.as_str();
        let function = FUNCTIONS.contains(&name);
        let charged = function || COMPARISONS.contains(&name);
        if !charged && !OTHER_OPERATORS.contains(&name) {
            return refused(format!("there is no function {name}"));
        }
        let grows = name == operators::ADD || name == "string";
        for operand in call.target.as_deref_mut().into_iter().chain(&mut call.args) {
            self.visit(operand)?;
            if charged && !matches!(operand.expr, Expr::Literal(_)) {
                wrap(operand, CHARGE, None);
            }
        }
        Ok(grows)
    }

    fn comprehension(&mut self, loops: &mut ComprehensionExpr) -> Result<(), Invalid> {
        if loops.iter_var2.is_some() {
            return refused("a loop has one variable".to_owned());
        }
        self.visit(&mut loops.iter_range)?;
        let before = self.nodes;
        self.bound.push(loops.iter_var.clone());
        self.step(&mut loops.loop_step, &loops.accu_var)?;
        self.bound.pop();
        // Each round costs what its body has of nodes.
        let weight = self.nodes.saturating_sub(before).saturating_add(4);
        wrap(&mut loops.iter_range, RANGE, Some(weight));
        Ok(())
    }

    /// The step of a loop that a macro made: its own shape stays, or the interpreter would copy the list each round.
    fn step(&mut self, step: &mut IdedExpr, accumulator: &str) -> Result<(), Invalid> {
        let Expr::Call(call) = &mut step.expr else { return self.visit(step) };
        for operand in &mut call.args {
            match &mut operand.expr {
                Expr::Ident(name) if name == accumulator => {}
                Expr::List(list) if call.func_name == operators::ADD => {
                    for element in &mut list.elements {
                        self.visit(element)?;
                        wrap(element, CHARGE, None);
                    }
                }
                Expr::Call(inner) if inner.args.first().is_some_and(|first| is_free(first, accumulator)) => {
                    self.step(operand, accumulator)?;
                }
                Expr::Unspecified
                | Expr::Call(_)
                | Expr::Comprehension(_)
                | Expr::Ident(_)
                | Expr::List(_)
                | Expr::Literal(_)
                | Expr::Map(_)
                | Expr::Select(_)
                | Expr::Struct(_) => self.visit(operand)?,
            }
        }
        Ok(())
    }
}

fn is_free(expr: &IdedExpr, wanted: &str) -> bool {
    matches!(&expr.expr, Expr::Ident(name) if name == wanted)
}
