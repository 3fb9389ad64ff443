//! Labels name what there is to build: `//phase2:p2-efa-4k-c1` is a pattern, `//phase2:L2-EFA`
//! a layer. Target patterns select labels. A label that parses has a non-empty package and name
//! made of safe characters only, so it can be a file name, a URL part or a shell word unquoted.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Kind};

/// The name of one pattern or layer in one package, or of one replicate of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label {
    package: Arc<str>,
    name: Arc<str>,
}

impl Label {
    /// Makes a label from its parts; both are checked.
    pub fn new(package: &str, name: &str) -> Result<Self, Error> {
        check_package(package, package)?;
        check_name(name, name)?;
        Ok(Self {
            package: package.into(),
            name: name.into(),
        })
    }

    /// Another name in the same package. The package is shared, so that many labels of one plan
    /// hold its text once.
    ///
    /// # Errors
    /// The name is not valid.
    pub fn sibling(&self, name: &str) -> Result<Self, Error> {
        check_name(name, name)?;
        Ok(Self {
            package: self.package.clone(),
            name: name.into(),
        })
    }

    /// A replicate of what this names: `//phase2:p2-efa-4k-c1@2`; the first has the name itself.
    pub fn replicate(&self, number: u32) -> Self {
        let base = self.base_name();
        Self {
            package: self.package.clone(),
            name: match number {
                0 | 1 => base.into(),
                more => format!("{base}@{more}").into(),
            },
        }
    }

    /// The name without the number of a replicate.
    pub fn base_name(&self) -> &str {
        self.name.split('@').next().unwrap_or(&self.name)
    }

    /// The package: `phase2`, or `a/b` for a nested plan.
    pub fn package(&self) -> &str {
        &self.package
    }

    /// The name inside the package.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "//{}:{}", self.package, self.name)
    }
}

impl FromStr for Label {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match Target::from_str(text)? {
            Target::Name(label) => Ok(label),
            _ => Err(bad(text, "a label names one thing, `//package:name`")),
        }
    }
}

impl serde::Serialize for Label {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One word of a target list, before it is held against a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `//phase2:L2-EFA`, `//phase2:L2`, `//phase2:p2-efa-4k-c1`: a pattern, a layer or its alias.
    Name(Label),
    /// `//phase2:all`: everything in the package but ad-hoc patterns. `//phase2` is short for it.
    All(Arc<str>),
    /// `//phase2/...` or `//...` (empty prefix): everything at and below, ad-hoc included.
    Below(Arc<str>),
    /// `#tag`: everything that carries the tag.
    Tag(Arc<str>),
    /// `@failed`: what failed, was invalid or was blocked when it last ran.
    Failed,
    /// `@stale`: what would run again.
    Stale,
}

impl Target {
    /// Whether it names everything of a package, ad-hoc patterns perhaps apart.
    pub fn has_whole(&self, package: &str) -> bool {
        match self {
            Target::All(name) => **name == *package,
            Target::Below(prefix) => {
                prefix.is_empty()
                    || package
                        .strip_prefix(&**prefix)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Target::Name(_) | Target::Tag(_) | Target::Failed | Target::Stale => false,
        }
    }
}

/// A target with its sign: `-//phase2:L3-TCP` takes away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// Whether the target is taken away from what stands before it.
    pub subtract: bool,
    /// What is selected.
    pub target: Target,
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (subtract, rest) = match text.strip_prefix(['-', '!']) {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if subtract && rest.is_empty() {
            return Err(bad(
                text,
                "a `-` takes away what follows it, and nothing does",
            ));
        }
        Ok(Self {
            subtract,
            target: rest.parse()?,
        })
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(tag) = text.strip_prefix('#') {
            check_name(tag, text)?;
            return Ok(Target::Tag(tag.into()));
        }
        match text {
            "@failed" => return Ok(Target::Failed),
            "@stale" => return Ok(Target::Stale),
            "//..." => return Ok(Target::Below("".into())),
            _ if text.starts_with('@') => {
                return Err(bad(text, "expected `@failed` or `@stale`"));
            }
            _ => {}
        }
        let Some(rest) = text.strip_prefix("//") else {
            let error = bad(text, "a target starts with `//`, `#` or `@`");
            return Err(match meant(text) {
                Some(meant) => error.hint(format!("did you mean {meant}?")),
                None => error,
            });
        };
        if let Some(prefix) = rest.strip_suffix("/...") {
            check_package(prefix, text)?;
            return Ok(Target::Below(prefix.into()));
        }
        match rest.split_once(':') {
            None => {
                check_package(rest, text)?;
                Ok(Target::All(rest.into()))
            }
            Some((package, "all")) => {
                check_package(package, text)?;
                Ok(Target::All(package.into()))
            }
            Some((package, "...")) => {
                check_package(package, text)?;
                Ok(Target::Below(package.into()))
            }
            Some((package, name)) => {
                check_package(package, text)?;
                let (base, replicate) = name.split_once('@').unwrap_or((name, "1"));
                check_name(base, text)?;
                let plain = replicate.bytes().all(|b| b.is_ascii_digit());
                if !plain
                    || replicate.is_empty()
                    || replicate.starts_with('0')
                    || replicate.len() > 4
                {
                    return Err(bad(
                        text,
                        "a replicate is a number, as in `//plan:pattern@2`",
                    ));
                }
                Ok(Target::Name(Label {
                    package: package.into(),
                    name: name.into(),
                }))
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Name(label) => label.fmt(f),
            Target::All(package) => write!(f, "//{package}:all"),
            Target::Below(prefix) if prefix.is_empty() => f.write_str("//..."),
            Target::Below(prefix) => write!(f, "//{prefix}/..."),
            Target::Tag(tag) => write!(f, "#{tag}"),
            Target::Failed => f.write_str("@failed"),
            Target::Stale => f.write_str("@stale"),
        }
    }
}

/// Whether a text can be the name in a label: letters, digits and `._+=,-`, starting with a
/// letter or digit, at most 200 bytes.
pub fn is_valid_name(name: &str) -> bool {
    name.len() <= 200
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._+=,-".contains(&b))
        && !name.contains("...")
}

/// Whether a text can be a package: valid names joined by `/`.
pub fn is_valid_package(package: &str) -> bool {
    package.split('/').all(is_valid_name)
}

fn check_name(name: &str, whole: &str) -> Result<(), Error> {
    if is_valid_name(name) {
        return Ok(());
    }
    Err(bad(
        whole,
        "a name is letters, digits and `._+=,-`, and starts with a letter or digit",
    ))
}

fn check_package(package: &str, whole: &str) -> Result<(), Error> {
    if is_valid_package(package) {
        return Ok(());
    }
    Err(bad(whole, "a package is one or more names joined by `/`"))
}

/// What a target without its `//` could have been, in forms that would be taken; the plan stands
/// as `PLAN` where the text does not say it.
fn meant(text: &str) -> Option<String> {
    let bare = text.trim_start_matches('/');
    let whole = format!("//{bare}");
    if (bare.contains(':') || bare.ends_with("/...")) && whole.parse::<Target>().is_ok() {
        return Some(format!("`{whole}`"));
    }
    let name = bare.strip_prefix(':').unwrap_or(bare);
    if !is_valid_name(name) {
        return None;
    }
    let inside = format!("`//PLAN:{name}`");
    Some(if name == bare && name != "all" {
        format!("{inside} (a layer or pattern of a plan) or `{whole}` (a plan)")
    } else {
        inside
    })
}

fn bad(text: &str, why: &str) -> Error {
    Error::new(
        Kind::Usage,
        "bad-label",
        format!("`{text}` is not a target: {why}"),
    )
    .hint("targets look like `//plan:pattern`, `//plan:layer`, `//plan:all`, `//plan/...`, `//...`, `#tag`, `@failed`, `@stale`; a leading `-` takes away")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_parses_and_prints_itself() {
        for text in [
            "//phase2:L2-EFA",
            "//phase2:p2-efa-4k-c1",
            "//phase2:all",
            "//phase2/...",
            "//...",
            "//a/b:c",
            "//a/b:c@2",
            "#smoke",
            "@failed",
            "@stale",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!(
            "//phase2".parse::<Target>().unwrap().to_string(),
            "//phase2:all"
        );
        let minus: Selector = "-//phase2:L3-TCP".parse().unwrap();
        assert!(minus.subtract);
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        for text in [
            "",
            "phase2:L2",
            "//",
            "//:x",
            "//a:",
            "//a b:c",
            "//a:b:c",
            "//a:b@",
            "//a:b@02",
            "//a:b@x",
            "//a:b@2@3",
            "//a:@2",
            "//a:b@99999",
            "@fialed",
            "#",
            "//../x:y",
            "/",
            "-",
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert_eq!(error.kind, Kind::Usage, "{text}");
            assert!(!error.hints.is_empty());
        }
        let error = "-".parse::<Selector>().unwrap_err();
        assert!(error.message.starts_with("`-` is not a target"), "{error}");
    }

    #[test]
    fn what_is_proposed_would_be_taken() {
        for (text, proposed) in [
            ("lab:all", Some("`//lab:all`")),
            (":all", Some("`//PLAN:all`")),
            ("all", Some("`//PLAN:all`")),
            (
                "L2",
                Some("`//PLAN:L2` (a layer or pattern of a plan) or `//L2` (a plan)"),
            ),
            (
                "/p2-efa-4k-c1",
                Some(
                    "`//PLAN:p2-efa-4k-c1` (a layer or pattern of a plan) or `//p2-efa-4k-c1` (a plan)",
                ),
            ),
            ("lab/...", Some("`//lab/...`")),
            ("-", None),
            ("", None),
            ("a b", None),
        ] {
            let hints = text.parse::<Target>().unwrap_err().hints;
            let hint = hints
                .iter()
                .find_map(|hint| hint.strip_prefix("did you mean "));
            assert_eq!(hint, proposed.map(|p| format!("{p}?")).as_deref(), "{text}");
            let quoted = hint.unwrap_or_default().split('`').skip(1).step_by(2);
            for target in quoted {
                assert!(target.parse::<Target>().is_ok(), "{text}: {target}");
            }
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_round_trips(text in "\\PC{0,40}") {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
            }
        }

        #[test]
        fn labels_round_trip(package in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}", name in "[A-Za-z0-9][A-Za-z0-9_.=,+-]{0,20}") {
            prop_assume!(!name.contains("...") && name != "all");
            let label = Label::new(&package, &name).unwrap();
            prop_assert_eq!(label.to_string().parse::<Label>().unwrap(), label.clone());
            prop_assert_eq!(Label::new(&package, "x").unwrap().sibling(&name).unwrap(), label);
        }
    }
}
