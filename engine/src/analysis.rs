//! What is wrong with a script, seen from its text alone, in every branch: calls of functions that
//! do not exist, and mistakes in specs that are written out.

use std::collections::{BTreeMap, BTreeSet};

use rhai::{AST, ASTNode, Engine, Expr, FnCallExpr, Position, Scope, Stmt};
use rhizome_model::{Code, Name, WorkloadKind};

use crate::api::{CONTEXT_NAMES, Places, REFUSED};
use crate::diagnostic::{Finding, did_you_mean};
use crate::shape::{Shape, problems};

/// What the parser itself turns into calls, or answers without a registered function. `curry` is
/// what a closure with captured variables becomes; the word itself is disabled.
const KEYWORDS: [&str; 9] =
    ["print", "debug", "type_of", "Fn", "call", "curry", "is_shared", "is_def_var", "is_def_fn"];
/// Undefined variables that are reported; each takes one more compilation.
const MAX_UNDEFINED: usize = 16;

/// The functions of an engine: name → numbers of parameters, a method's receiver included.
pub struct Functions(BTreeMap<String, BTreeSet<usize>>);

#[derive(Default)]
pub struct Analysis {
    pub findings: Vec<Finding>,
    /// Where the fields of literal specs stand.
    pub places: Places,
    /// Parameters that are read without saying what else to take.
    pub required_params: BTreeSet<String>,
}

impl Functions {
    pub fn of(engine: &Engine) -> Self {
        let listed = engine.collect_fn_metadata(
            None,
            |info| Some((info.metadata.name.to_string(), info.metadata.num_params)),
            true,
        );
        let mut functions: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (name, params) in listed {
            let refused = REFUSED.iter().any(|(word, _)| *word == name);
            if is_identifier(&name) && !refused {
                functions.entry(name).or_default().insert(params);
            }
        }
        Self(functions)
    }
}

fn is_identifier(name: &str) -> bool {
    name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// Compiles a script. On the way over undefined variables, so that all of them are found.
pub fn compile(engine: &Engine, source: &str) -> Result<(AST, Vec<Finding>), Vec<Finding>> {
    let mut scope = Scope::new();
    for (name, _) in CONTEXT_NAMES {
        scope.push_constant(name, ());
    }
    let mut undefined: Vec<Finding> = Vec::new();
    loop {
        let error = match engine.compile_with_scope(&scope, source) {
            Ok(ast) => return Ok((ast, undefined)),
            Err(error) => error,
        };
        let rhai::ParseErrorType::VariableUndefined(name) = error.err_type() else {
            undefined.push(crate::child::parse_finding(&error));
            return Err(undefined);
        };
        let hint = did_you_mean(name, scope.iter_raw().map(|(known, ..)| known))
            .or_else(|| did_you_mean(name, declared_names(source)));
        let message = format!("there is no variable `{name}`");
        let finding = Finding::new(Code::ScriptInvalid, error.position(), message);
        let known = undefined.len() >= MAX_UNDEFINED || scope.contains(name);
        undefined.push(finding.with_hint(hint));
        if known {
            return Err(undefined);
        }
        scope.push_constant(name.clone(), ());
    }
}

/// The words behind `let`, `const` and `for`, for hints only.
fn declared_names(source: &str) -> impl Iterator<Item = &str> {
    let words = source.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    let words: Vec<_> = words.filter(|w| !w.is_empty()).collect();
    let pairs: Vec<_> = words.windows(2).map(|pair| (pair[0], pair[1])).collect();
    pairs.into_iter().filter(|(k, _)| matches!(*k, "let" | "const" | "for")).map(|(_, name)| name)
}

pub fn analyse(ast: &AST, functions: &Functions) -> Analysis {
    let mut walk = Walk { functions, own: BTreeMap::new(), members: BTreeSet::new() };
    for function in ast.iter_functions() {
        walk.own.entry(function.name.to_owned()).or_default().insert(function.params.len());
    }
    ast.walk(&mut |path| {
        walk.learn(path);
        true
    });
    let mut analysis = Analysis::default();
    ast.walk(&mut |path| {
        walk.look(path, &mut analysis);
        true
    });
    analysis.findings.sort_by_key(|f| f.position);
    // Bodies of closures are walked where they stand and again as functions.
    analysis.findings.dedup();
    analysis
}

struct Walk<'a> {
    functions: &'a Functions,
    /// The script's own functions.
    own: BTreeMap<String, BTreeSet<usize>>,
    /// Keys of maps: a closure in a map is called like a method.
    members: BTreeSet<String>,
}

impl Walk<'_> {
    fn learn(&mut self, path: &[ASTNode]) {
        match path.last() {
            Some(ASTNode::Expr(Expr::Map(map, _))) => {
                self.members.extend(map.0.iter().map(|(key, _)| key.name.to_string()));
            }
            Some(ASTNode::Expr(Expr::Property(property, _))) => {
                self.members.insert(property.2.to_string());
            }
            _ => {}
        }
    }

    fn look(&self, path: &[ASTNode], analysis: &mut Analysis) {
        match path.last() {
            Some(ASTNode::Stmt(Stmt::FnCall(call, at)) | ASTNode::Expr(Expr::FnCall(call, at))) => {
                self.call(call, *at, call.args.len(), analysis);
            }
            Some(ASTNode::Expr(Expr::MethodCall(call, at)))
                if !self.members.contains(call.name.as_str()) =>
            {
                self.call(call, *at, call.args.len() + 1, analysis);
            }
            Some(ASTNode::Expr(expr)) => {
                if let Some(name) = parameter(expr)
                    && !guarded(path)
                {
                    analysis.required_params.insert(name);
                }
            }
            _ => {}
        }
    }

    fn call(&self, call: &FnCallExpr, at: Position, arity: usize, analysis: &mut Analysis) {
        let name = call.name.as_str();
        if call.op_token.is_some() || !is_identifier(name) || KEYWORDS.contains(&name) {
            return;
        }
        if let Some(finding) = self.unknown(call, at, arity) {
            analysis.findings.push(finding);
        } else if let Ok(kind) = name.parse() {
            declaration(kind, call, at, analysis);
        }
    }

    fn unknown(&self, call: &FnCallExpr, at: Position, arity: usize) -> Option<Finding> {
        let name = call.name.as_str();
        if call.is_qualified() {
            let message = format!("there is no module with a function `{name}`");
            return Some(Finding::new(Code::ScriptInvalid, at, message));
        }
        if let Some(takes) = self.own.get(name) {
            // A method's receiver is `this` in a function of the script.
            if takes.contains(&arity) || arity > 0 && takes.contains(&(arity - 1)) {
                return None;
            }
        }
        if let Some(takes) = self.functions.0.get(name) {
            if takes.contains(&arity) {
                return None;
            }
            let takes: Vec<_> = takes.iter().map(usize::to_string).collect();
            let message = format!("`{name}` takes {} arguments, not {arity}", takes.join(" or "));
            return Some(Finding::new(Code::ScriptInvalid, at, message));
        }
        let refused = REFUSED.iter().find(|(word, _)| *word == name);
        let words = self.functions.0.keys().chain(self.own.keys()).map(String::as_str);
        let hint = match refused {
            Some((_, instead)) => Some((*instead).to_owned()),
            // Ours come first: a script is more likely to mean `machine` than `max`.
            None => did_you_mean(name, WorkloadKind::ALL.iter().map(|k| k.as_str()))
                .or_else(|| did_you_mean(name, words)),
        };
        let message = match self.own.get(name) {
            Some(_) => format!("`{name}` does not take {arity} arguments"),
            None => format!("there is no function `{name}`"),
        };
        Some(Finding::new(Code::ScriptInvalid, at, message).with_hint(hint))
    }
}

/// Name and spec of a declaration, as far as they are written out.
fn declaration(kind: WorkloadKind, call: &FnCallExpr, at: Position, analysis: &mut Analysis) {
    if let Some(Expr::StringConstant(name, at)) = call.args.first()
        && let Err(error) = name.parse::<Name>()
    {
        let message = format!("{kind}: {error}");
        analysis.findings.push(Finding::new(Code::ScriptInvalid, *at, message));
    }
    let Some(spec @ Expr::Map(..)) = call.args.get(1) else { return };
    let spec = shape(spec);
    for problem in problems(kind, &spec) {
        let finding = Finding::new(Code::InvalidSpec, problem.position, problem.message);
        analysis.findings.push(finding.with_hint(problem.hint));
    }
    analysis.places.insert(at, spec.places());
}

fn shape(expr: &Expr) -> Shape {
    match expr {
        Expr::Map(map, at) => {
            let fields = map.0.iter();
            Shape::Map(fields.map(|(k, v)| (k.name.to_string(), k.pos, shape(v))).collect(), *at)
        }
        Expr::Array(items, at) => Shape::List(items.iter().map(shape).collect(), *at),
        Expr::StringConstant(text, at) => Shape::Text(text.to_string(), *at),
        Expr::Unit(at) => Shape::Null(*at),
        other => Shape::Unknown(other.position()),
    }
}

/// The `x` of `params.x` and `params["x"]`.
fn parameter(expr: &Expr) -> Option<String> {
    let (Expr::Dot(pair, ..) | Expr::Index(pair, ..)) = expr else { return None };
    let Expr::Variable(variable, ..) = &pair.lhs else { return None };
    if variable.1 != "params" {
        return None;
    }
    let mut first = &pair.rhs;
    while let Expr::Dot(pair, ..) | Expr::Index(pair, ..) = first {
        first = &pair.lhs;
    }
    match first {
        Expr::Property(property, _) => Some(property.2.to_string()),
        Expr::StringConstant(key, _) => Some(key.to_string()),
        _ => None,
    }
}

/// Whether what is read here may be `()`: `… ?? x`, `… == ()`, `… != ()`.
fn guarded(path: &[ASTNode]) -> bool {
    let parent = path.len().checked_sub(2).map(|i| &path[i]);
    match parent {
        Some(ASTNode::Expr(Expr::Coalesce(..))) => true,
        Some(ASTNode::Expr(Expr::FnCall(call, _))) => {
            let unit = call.args.iter().any(|arg| matches!(arg, Expr::Unit(_)));
            unit && matches!(call.name.as_str(), "==" | "!=")
        }
        _ => false,
    }
}
