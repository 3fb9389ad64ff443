//! How often what the infrastructure spoiled is tried again, and after which pauses. Each key is
//! told by the innermost place that says it; what nobody says has a default, so a policy is whole
//! and within its bounds.

use crate::error::Diagnostic;
use crate::source::{Item, ItemValue, Table};

/// Most further attempts that anybody may ask for.
const MOST_TIMES: i64 = 20;

/// What one place says of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RetryDef {
    /// Further attempts after the first.
    times: Option<u32>,
    /// Seconds before the second attempt.
    base_s: Option<f64>,
    /// By what the pause grows with every attempt.
    factor: Option<f64>,
    /// Longest pause in seconds.
    cap_s: Option<f64>,
}

/// How often, and after which pauses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Attempts in all, at least one.
    pub attempts: u32,
    /// Seconds before the second attempt, before jitter.
    pub base_s: f64,
    /// By what the pause grows with every attempt, at least 1.
    pub factor: f64,
    /// Longest pause in seconds.
    pub cap_s: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 3,
            base_s: 2.0,
            factor: 2.0,
            cap_s: 60.0,
        }
    }
}

impl RetryDef {
    /// `retry = 2`, or `retry = { times = 2, base = "2s", factor = 2, cap = "1m" }`.
    pub fn read(table: &mut Table<'_>, diags: &mut Vec<Diagnostic>) -> Self {
        let mut def = Self::default();
        match table.item("retry") {
            None => {}
            Some(item) if matches!(item.value, ItemValue::Int(_)) => {
                def.times = times(item, "`retry`", diags);
            }
            Some(item) => {
                let Some(table) = item.as_table("`retry`", diags) else {
                    return def;
                };
                let mut table = table.named("`retry`");
                if let Some(item) = table.item("times") {
                    def.times = times(item, "`times`", diags);
                }
                def.base_s = table.opt_duration("base", diags).map(|s| s.value);
                def.cap_s = table.opt_duration("cap", diags).map(|s| s.value);
                if let Some(factor) = table.opt_float("factor", diags) {
                    if factor.value >= 1.0 {
                        def.factor = Some(factor.value);
                    } else {
                        let text = format!("`factor` must be 1 or more; found {}", factor.value);
                        diags.push(Diagnostic::error("out-of-bounds", text).at(factor.site, ""));
                    }
                }
                table.remaining(diags, "of `retry`");
            }
        }
        def
    }

    /// What this place says over what another one does.
    pub fn over(self, below: Self) -> Self {
        Self {
            times: self.times.or(below.times),
            base_s: self.base_s.or(below.base_s),
            factor: self.factor.or(below.factor),
            cap_s: self.cap_s.or(below.cap_s),
        }
    }

    /// With the defaults of what nobody said.
    pub fn policy(self) -> RetryPolicy {
        let usual = RetryPolicy::default();
        RetryPolicy {
            attempts: self.times.map_or(usual.attempts, |times| times + 1),
            base_s: self.base_s.unwrap_or(usual.base_s),
            factor: self.factor.unwrap_or(usual.factor),
            cap_s: self.cap_s.unwrap_or(usual.cap_s),
        }
    }
}

fn times(item: &Item, what: &str, diags: &mut Vec<Diagnostic>) -> Option<u32> {
    let times = item.as_int(what, diags)?;
    if !(0..=MOST_TIMES).contains(&times.value) {
        let found = times.value;
        let text = format!("{what} must be from 0 to {MOST_TIMES}; found {found}");
        let found = Diagnostic::error("out-of-bounds", text).at(times.site, "");
        diags.push(found.hint("it is the number of further attempts after the first"));
        return None;
    }
    u32::try_from(times.value).ok()
}
