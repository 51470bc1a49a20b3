//! What is mutated: finds the places of one source file, and says what to put there.
//!
//! The operators are those of cargo-mutants. Left out: constants, statics, patterns and macro arguments, which a switch at run time cannot
//! reach; `|` to `^`, which is the same for flags; conditions that are always true where they bind a name.

use std::ops::Range;

use anyhow::{Context as _, Result};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{BinOp, Expr, Pat, ReturnType, UnOp};

use super::defaults::defaults;

/// A stretch of source text around which mutants are put.
#[derive(Debug)]
pub struct Site {
    /// Bytes of the source.
    pub range: Range<usize>,
    pub shape: Shape,
    pub mutants: Vec<Change>,
}

/// How the mutants of a site are written around its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// An expression: another in its place.
    Expression,
    /// The contents of a function's body: return early.
    Body,
    /// The contents of the body of a function that returns an iterator: end it at once.
    Iterator,
    /// A condition, or the guard of an arm: always true, or never.
    Condition,
    /// A condition that binds names, around which no parentheses may be put.
    Chain,
    /// The end of an arm's pattern: never matches.
    Pattern,
}

#[derive(Clone, Debug)]
pub struct Change {
    pub function: String,
    pub line: usize,
    /// What is told: the text before and after.
    pub description: String,
    /// What takes the place, or the value that a condition takes.
    pub text: String,
}

/// The sites of a file, outer ones before inner ones.
pub fn sites(source: &str) -> Result<Vec<Site>> {
    let file = syn::parse_file(source).context("it is not Rust")?;
    let mut finder = Finder { source, path: Vec::new(), sites: Vec::new() };
    finder.visit_file(&file);
    let mut sites = finder.sites;
    // Stable: of two sites with one range, the one that was found first is the outer one.
    sites.sort_by_key(|site| (site.range.start, std::cmp::Reverse(site.range.end)));
    Ok(sites)
}

struct Finder<'a> {
    source: &'a str,
    path: Vec<String>,
    sites: Vec<Site>,
}

// === impl Finder ===

impl Finder<'_> {
    fn text(&self, node: &impl Spanned) -> &str {
        &self.source[node.span().byte_range()]
    }

    fn change(&self, place: &impl Spanned, description: String, text: String) -> Change {
        Change { function: self.path.join("::"), line: place.span().start().line, description, text }
    }

    fn site(&mut self, range: Range<usize>, shape: Shape, mutants: Vec<Change>) {
        if !mutants.is_empty() {
            self.sites.push(Site { range, shape, mutants });
        }
    }

    fn function(&mut self, attributes: &[syn::Attribute], signature: &syn::Signature, block: &syn::Block) {
        if is_test(attributes) || block.stmts.is_empty() {
            return;
        }
        self.path.push(signature.ident.to_string());
        let braces = block.span().byte_range();
        let inside = braces.start + 1..braces.end - 1;
        let body = short(&self.source[inside.clone()]);
        let (shape, texts) = match &signature.output {
            ReturnType::Default => (Shape::Body, vec![String::new()]),
            ReturnType::Type(_, kind) => match &**kind {
                syn::Type::ImplTrait(bounds) if self.text(bounds).contains("Iterator") => {
                    (Shape::Iterator, vec!["nothing".to_owned()])
                }
                kind => (Shape::Body, defaults(kind)),
            },
        };
        let texts = texts.into_iter().filter(|text| *text != body);
        let changes = texts.map(|text| {
            let told = if text.is_empty() { "()" } else { &text };
            self.change(&signature.ident, format!("the body: {told}"), text.clone())
        });
        let changes = changes.collect();
        self.site(inside, shape, changes);
        visit::visit_block(self, block);
        self.path.pop();
    }

    fn condition(&mut self, condition: &Expr, values: &[&str]) {
        let told = short(self.text(condition));
        let shape = if binds(condition) { Shape::Chain } else { Shape::Condition };
        let values = values.iter().filter(|value| shape == Shape::Condition || **value == "false");
        let changes = values.map(|value| self.change(condition, format!("if {told}: {value}"), (*value).to_owned()));
        let changes = changes.collect();
        self.site(condition.span().byte_range(), shape, changes);
    }

    fn named(&mut self, name: String, visit: impl FnOnce(&mut Self)) {
        self.path.push(name);
        visit(self);
        self.path.pop();
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let of_debug = item.trait_.as_ref().is_some_and(|(_, path, _)| self.text(path).ends_with("Debug"));
        if !of_debug && !is_test(&item.attrs) {
            let name = self.text(&*item.self_ty).split('<').next().unwrap_or_default().to_owned();
            self.named(name, |finder| visit::visit_item_impl(finder, item));
        }
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.named(item.ident.to_string(), |finder| visit::visit_item_trait(finder, item));
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.attrs, &item.sig, &item.block);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.attrs, &item.sig, &item.block);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.attrs, &item.sig, block);
        }
    }

    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}
    fn visit_trait_item_const(&mut self, _: &'ast syn::TraitItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_pat(&mut self, _: &'ast Pat) {}
    fn visit_type(&mut self, _: &'ast syn::Type) {}
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}
    fn visit_expr_const(&mut self, _: &'ast syn::ExprConst) {}

    fn visit_expr_repeat(&mut self, repeat: &'ast syn::ExprRepeat) {
        self.visit_expr(&repeat.expr);
    }

    fn visit_expr_binary(&mut self, binary: &'ast syn::ExprBinary) {
        if !binds(&binary.left) && !binds(&binary.right) {
            let (left, right) = (self.text(&*binary.left), self.text(&*binary.right));
            let before = short(self.text(binary));
            let assigns =
                self.text(&binary.op).ends_with('=') && replacements(&binary.op).iter().all(|op| op.len() > 1);
            let changes = replacements(&binary.op).iter().map(|op| {
                let is_assignment = assigns && !matches!(*op, "==" | "!=" | "<=" | ">=");
                let text =
                    if is_assignment { format!("{left} {op} {right}") } else { format!("({left}) {op} ({right})") };
                self.change(binary, format!("{before}: {} to {op}", self.text(&binary.op)), text)
            });
            let changes = changes.collect();
            self.site(binary.span().byte_range(), Shape::Expression, changes);
        }
        visit::visit_expr_binary(self, binary);
    }

    fn visit_expr_unary(&mut self, unary: &'ast syn::ExprUnary) {
        if matches!(unary.op, UnOp::Not(_) | UnOp::Neg(_)) {
            let text = self.text(&*unary.expr).to_owned();
            let description = format!("{}: without its sign", short(self.text(unary)));
            let change = self.change(unary, description, text);
            self.site(unary.span().byte_range(), Shape::Expression, vec![change]);
        }
        visit::visit_expr_unary(self, unary);
    }

    fn visit_expr_if(&mut self, expression: &'ast syn::ExprIf) {
        self.condition(&expression.cond, &["true", "false"]);
        visit::visit_expr_if(self, expression);
    }

    fn visit_expr_while(&mut self, expression: &'ast syn::ExprWhile) {
        self.condition(&expression.cond, &["false"]);
        visit::visit_expr_while(self, expression);
    }

    fn visit_expr_match(&mut self, expression: &'ast syn::ExprMatch) {
        // Without an arm for everything else, the match would not be complete.
        let all = |arm: &syn::Arm| arm.guard.is_none() && takes_all(&arm.pat);
        let open = expression.arms.last().is_some_and(all);
        for arm in &expression.arms {
            if let Some((_, guard)) = &arm.guard {
                self.condition(guard, &["true", "false"]);
            } else if open && !all(arm) {
                let description = format!("the arm {}: gone", short(self.text(&arm.pat)));
                let change = self.change(&arm.pat, description, String::new());
                let end = arm.pat.span().byte_range().end;
                self.site(end..end, Shape::Pattern, vec![change]);
            }
        }
        visit::visit_expr_match(self, expression);
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list = attribute.meta.require_list();
        list.is_ok_and(|list| list.path.is_ident("cfg") && list.tokens.to_string() == "test")
    })
}

/// `_` or a new name; a name with a capital is a constant or a variant.
fn takes_all(pattern: &Pat) -> bool {
    match pattern {
        Pat::Wild(_) => true,
        Pat::Ident(name) => name.ident.to_string().starts_with(char::is_lowercase),
        _ => false,
    }
}

/// `let` is part of the condition.
fn binds(condition: &Expr) -> bool {
    match condition {
        Expr::Let(_) => true,
        Expr::Binary(binary) => binds(&binary.left) || binds(&binary.right),
        _ => false,
    }
}

/// One line.
fn short(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn replacements(operator: &BinOp) -> &'static [&'static str] {
    match operator {
        BinOp::Eq(_) => &["!="],
        BinOp::Ne(_) => &["=="],
        BinOp::And(_) => &["||"],
        BinOp::Or(_) => &["&&"],
        BinOp::Lt(_) => &["<=", "==", ">"],
        BinOp::Gt(_) => &[">=", "==", "<"],
        BinOp::Le(_) => &["<", ">"],
        BinOp::Ge(_) => &[">", "<"],
        BinOp::Add(_) => &["-", "*"],
        BinOp::Sub(_) => &["+", "/"],
        BinOp::Mul(_) => &["+", "/"],
        BinOp::Div(_) => &["%", "*"],
        BinOp::Rem(_) => &["/", "+"],
        BinOp::Shl(_) => &[">>"],
        BinOp::Shr(_) => &["<<"],
        BinOp::BitAnd(_) => &["|", "^"],
        BinOp::BitOr(_) => &["&"],
        BinOp::BitXor(_) => &["|", "&"],
        BinOp::AddAssign(_) => &["-=", "*="],
        BinOp::SubAssign(_) => &["+=", "/="],
        BinOp::MulAssign(_) => &["+=", "/="],
        BinOp::ShlAssign(_) => &[">>="],
        BinOp::ShrAssign(_) => &["<<="],
        BinOp::BitAndAssign(_) => &["|="],
        BinOp::BitOrAssign(_) => &["&="],
        BinOp::BitXorAssign(_) => &["|="],
        _ => &[],
    }
}
