//! What a plan says of the hosts it runs on: `[requires]`. A claim is written like an expectation,
//! and judged by the type of the fact: numbers as numbers, versions by their parts, texts as texts.

use doe_cache::Value;

use super::expect::{self, Got, Judgement};
use super::model::{Condition, HostClaim};
use crate::error::Diagnostic;
use crate::rule::fact::{FactType, Version};
use crate::source::{Entry, ItemValue, Table};

/// Reads `[requires]`: facts of every host, and tables of facts of one role's host.
pub(super) fn read(table: &Table<'_>, diags: &mut Vec<Diagnostic>) -> Vec<HostClaim> {
    let mut claims = Vec::new();
    for entry in table.entries() {
        match &entry.item.value {
            ItemValue::Table(inner) => {
                let role = Some(entry.key.text.as_str());
                claims.extend(inner.iter().filter_map(|inner| claim(role, inner, diags)));
            }
            _ => claims.extend(claim(None, entry, diags)),
        }
    }
    claims
}

fn claim(role: Option<&str>, entry: &Entry, diags: &mut Vec<Diagnostic>) -> Option<HostClaim> {
    let fact = &entry.key.text;
    let text = match &entry.item.value {
        ItemValue::Str(text) => text.trim().to_owned(),
        ItemValue::Int(value) => value.to_string(),
        ItemValue::Float(value) if value.is_finite() => value.to_string(),
        ItemValue::Bool(value) => value.to_string(),
        _ => {
            let found = entry.item.wrong_type(
                &format!("what is required of `{fact}`"),
                "a text or a number",
            );
            diags.push(found.hint(HOW));
            return None;
        }
    };
    if let Err(refusal) = expect::parse(&text)
        && versions(&text).is_none()
    {
        let why = &refusal.why;
        let mut found = Diagnostic::error(
            "bad-expectation",
            format!("`{text}` cannot be required: {why}"),
        );
        found = found.at(entry.item.site.clone(), "");
        if let Some(write) = refusal.write {
            found = found.hint(format!("write `{write}`"));
        }
        diags.push(found.hint(HOW));
        return None;
    }
    Some(HostClaim {
        role: role.map(str::to_owned),
        fact: fact.clone(),
        text,
        site: entry.item.site.clone(),
    })
}

const HOW: &str =
    "write `30..40`, `< 80`, `<= 80`, `> 1`, `>= 1`, a number, a version, or texts joined by `or`";

/// Holds a fact against what is written. `ty` is the type that its probe declares.
pub fn judge(text: &str, value: &Value, ty: Option<FactType>) -> Judgement {
    let met = |met: bool| match met {
        true => Judgement::Met,
        false => Judgement::Missed,
    };
    let one_of = |got: &str| {
        let texts = match expect::parse(text) {
            Ok(Condition::OneOf(texts)) => texts,
            Ok(Condition::Equal(_)) => vec![text.to_owned()],
            _ => return Judgement::Incomparable,
        };
        met(texts.iter().any(|text| text == got))
    };
    match value {
        Value::Str(got) if ty == Some(FactType::Version) => by_version(text, got),
        // Of what a platform declares nobody says whether it is a version.
        Value::Str(got) if ty.is_none() => match one_of(got) {
            Judgement::Incomparable => by_version(text, got),
            judged => judged,
        },
        Value::Str(got) => one_of(got),
        Value::Bool(got) => one_of(&got.to_string()),
        number => match (number.as_f64(), expect::parse(text)) {
            (Some(number), Ok(condition)) => expect::judge(&condition, Got::Number(number)),
            _ => Judgement::Incomparable,
        },
    }
}

/// A comparison of versions: a sign (none: equal) and a version, or both ends of a range.
fn versions(text: &str) -> Option<Vec<(&str, Version<'_>)>> {
    if let Some((low, high)) = text.split_once("..") {
        let (low, high) = (Version::parse(low.trim())?, Version::parse(high.trim())?);
        return Some(vec![(">=", low), ("<=", high)]);
    }
    let signs = ["<=", ">=", "<", ">", ""];
    let sign = signs.into_iter().find(|sign| text.starts_with(sign))?;
    Some(vec![(sign, Version::parse(text[sign.len()..].trim())?)])
}

fn by_version(text: &str, got: &str) -> Judgement {
    let Some(got) = Version::parse(got) else {
        return Judgement::Incomparable;
    };
    let holds = |text: &str| {
        let wanted = versions(text.trim())?;
        Some(wanted.iter().all(|(sign, wanted)| {
            let order = got.order(wanted);
            match *sign {
                "<=" => order.is_le(),
                ">=" => order.is_ge(),
                "<" => order.is_lt(),
                ">" => order.is_gt(),
                _ => order.is_eq(),
            }
        }))
    };
    let all: Option<Vec<bool>> = text.split(" or ").map(holds).collect();
    match all {
        Some(all) if all.contains(&true) => Judgement::Met,
        Some(_) => Judgement::Missed,
        None => Judgement::Incomparable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Judgement::{Incomparable, Met, Missed};

    #[test]
    fn claims_are_judged_by_the_type_of_the_fact() {
        let text = |text: &str| Value::from(text);
        for (wanted, value, ty, judged) in [
            ("NVIDIA L40S", text("NVIDIA L40S"), FactType::Str, Met),
            (
                "NVIDIA L40S or NVIDIA L4",
                text("NVIDIA L4"),
                FactType::Str,
                Met,
            ),
            ("g6e.12xlarge", text("g5.12xlarge"), FactType::Str, Missed),
            (">= 4", text("4"), FactType::Str, Incomparable),
            ("13.0", text("13.0"), FactType::Str, Met),
            (">= 4", Value::Int(8), FactType::Int, Met),
            ("4", Value::Int(8), FactType::Int, Missed),
            ("four", Value::Int(4), FactType::Int, Incomparable),
            ("30..40", Value::Float(30.0), FactType::Float, Met),
            ("true", Value::Bool(true), FactType::Bool, Met),
            (">= 570.86.15", text("580.126.09"), FactType::Version, Met),
            ("< 570", text("580.126.09"), FactType::Version, Missed),
            ("0.16", text("0.16.0"), FactType::Version, Met),
            ("0.15.1 or 0.16.0", text("0.16.0"), FactType::Version, Met),
            ("0.15.1..0.16.9", text("0.16.0"), FactType::Version, Met),
            ("newest", text("0.16.0"), FactType::Version, Incomparable),
        ] {
            assert_eq!(judge(wanted, &value, Some(ty)), judged, "{wanted} {value}");
        }
        assert_eq!(judge(">= 570", &text("580.126.09"), None), Met);
        assert_eq!(judge("NVIDIA L4", &text("NVIDIA L40S"), None), Missed);
    }
}
