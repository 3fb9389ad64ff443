//! A plan file as written, before any rule is looked at. Every value has its place, and what had
//! the wrong shape is not here any more.

use doe_cache::Value;

use super::model::{Expectation, HostClaim};
use super::repeat::RepeatDecl;
use super::uses::Uses;
use crate::error::Site;
use crate::rule::retry::RetryDef;
use crate::source::{Spanned, Text};

/// A plan file.
#[derive(Debug, Clone, Default)]
pub(super) struct PlanDecl {
    /// `[plan] title`; the package when absent.
    pub title: Option<Text>,
    /// `[plan] rules`: rule files in use.
    pub rules: Vec<Text>,
    /// Whether `rules` had the wrong shape, so that nobody knows what it should list.
    pub rules_unknown: bool,
    /// `[plan] expect_patterns`.
    pub expect_patterns: Option<Spanned<i64>>,
    /// `[plan] tags`, for every pattern.
    pub tags: Vec<Text>,
    /// `[plan] retry`.
    pub retry: RetryDef,
    /// `[plan] uses`.
    pub uses: Uses,
    /// `[plan] repeat` and its kin.
    pub repeat: RepeatDecl,
    /// `[settings]`.
    pub settings: Vec<SettingDecl>,
    /// `[[layer]]`.
    pub layers: Vec<LayerDecl>,
    /// `[[followup]]`.
    pub followups: Vec<FollowupDecl>,
    /// `[[compare]]`.
    pub compares: Vec<CompareDecl>,
    /// `[requires]`.
    pub requires: Vec<HostClaim>,
}

/// `key = value` in a table of settings.
#[derive(Debug, Clone)]
pub(super) struct SettingDecl {
    /// The key.
    pub key: Text,
    /// The value as written, not yet held against a type.
    pub value: Value,
    /// Where the value stands.
    pub site: Site,
}

/// One line of a matrix.
#[derive(Debug, Clone)]
pub(super) struct FactorDecl {
    /// The key.
    pub key: Text,
    /// The levels in file order, at least one.
    pub levels: Vec<Spanned<Value>>,
}

/// What layers and patterns have in common.
#[derive(Debug, Clone, Default)]
pub(super) struct Common {
    /// For people.
    pub title: Option<Text>,
    /// `file.table`.
    pub rule: Option<Text>,
    /// Settings.
    pub settings: Vec<SettingDecl>,
    /// Matrix in file order.
    pub matrix: Vec<FactorDecl>,
    /// `[[layer.override]]`, `[[layer.pattern.override]]`.
    pub overrides: Vec<OverrideDecl>,
    /// `select.keep`: only these cells; `None` keeps all.
    pub keep: Option<Vec<Pick>>,
    /// `select.drop`: not these cells.
    pub drop: Vec<Pick>,
    /// Data edges as written.
    pub needs: Vec<Text>,
    /// Gates as written.
    pub gate: Vec<Text>,
    /// What is expected.
    pub expect: Option<ExpectDecl>,
    /// How often what the infrastructure spoiled is tried again.
    pub retry: RetryDef,
    /// What is taken of tokens and links.
    pub uses: Uses,
    /// How often it is measured, and in which order.
    pub repeat: RepeatDecl,
    /// Tags.
    pub tags: Vec<Text>,
    /// Time per pattern.
    pub estimate: Option<EstimateDecl>,
    /// Whether patterns are left out of `:all`.
    pub adhoc: Option<bool>,
}

/// `expect`.
#[derive(Debug, Clone)]
pub(super) enum ExpectDecl {
    /// A table: what metrics should be, in file order.
    Metrics(Vec<Expectation>),
    /// A text: the class of the failure that is the result.
    Class(Text),
}

impl Common {
    /// What metrics should be.
    pub(super) fn metrics(&self) -> &[Expectation] {
        match &self.expect {
            Some(ExpectDecl::Metrics(metrics)) => metrics,
            _ => &[],
        }
    }
}

/// Which cells are meant.
#[derive(Debug, Clone)]
pub(super) enum Pick {
    /// Those for which an expression is true.
    Where(Text),
    /// Those whose settings are among the listed ones.
    Cell(CellPick),
}

/// `{ prompt_tokens = 1024, concurrency = [1, 16] }`.
#[derive(Debug, Clone)]
pub(super) struct CellPick {
    /// Key and values, any of which will do.
    pub wanted: Vec<FactorDecl>,
    /// The whole table.
    pub site: Site,
}

/// How long a pattern takes.
#[derive(Debug, Clone)]
pub(super) enum EstimateDecl {
    /// Seconds.
    Seconds(f64),
    /// An expression in seconds over settings.
    Expression(Text),
}

/// `[[layer]]`.
#[derive(Debug, Clone)]
pub(super) struct LayerDecl {
    /// `L2-EFA`.
    pub id: Text,
    /// Template of the ids of the layer's own matrix.
    pub pattern: Option<Text>,
    /// What patterns have too.
    pub common: Common,
    /// `[[layer.pattern]]`.
    pub patterns: Vec<PatternDecl>,
    /// Where the layer starts.
    pub site: Site,
    /// Whether something was left out because it had the wrong shape.
    pub broken: bool,
}

/// An override: settings of the cells where a condition holds.
#[derive(Debug, Clone)]
pub(super) struct OverrideDecl {
    /// The condition.
    pub when: Text,
    /// Settings where it holds.
    pub settings: Vec<SettingDecl>,
}

/// `[[layer.pattern]]`.
#[derive(Debug, Clone)]
pub(super) struct PatternDecl {
    /// The id, a template.
    pub id: Text,
    /// What layers have too.
    pub common: Common,
    /// Where the pattern starts.
    pub site: Site,
}

/// `[[followup]]`.
#[derive(Debug, Clone)]
pub(super) struct FollowupDecl {
    /// Its own name.
    pub id: Option<Text>,
    /// The comparison whose pairs it looks at.
    pub across: Option<Text>,
    /// What it can bring in, as written.
    pub patterns: Vec<Text>,
    /// The condition.
    pub when: Text,
    /// Seconds it may spend.
    pub budget_s: Option<f64>,
    /// Where it starts.
    pub site: Site,
}

/// `[[compare]]`.
#[derive(Debug, Clone)]
pub(super) struct CompareDecl {
    /// `CMP-03`.
    pub id: Text,
    /// For people.
    pub title: Option<Text>,
    /// Layers, as written.
    pub between: Vec<Text>,
    /// Settings that pair.
    pub by: Vec<Text>,
    /// Settings that may differ.
    pub only_on: Vec<Text>,
    /// Where it starts.
    pub site: Site,
}
