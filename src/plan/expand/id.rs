//! Ids and references that are templates over a cell's settings. A template is cut into pieces,
//! each of which is rendered once per combination of the settings that it mentions; whatever
//! cannot be cut safely is rendered whole. Both ways give the same text.

use std::sync::Arc;

use doe_cache::Value;

use super::memo::{Memo, Row};
use crate::error::Diagnostic;
use crate::rule::{Mode, Template};
use crate::source::Text;

/// A text over the settings of a cell.
#[derive(Debug)]
pub(super) struct IdTemplate {
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    /// The same for all cells.
    Literal(String),
    /// A bare name.
    Name(usize, Rendered),
    /// Anything else.
    Rendered(Rendered),
}

#[derive(Debug)]
struct Rendered {
    template: Template,
    memo: Memo<Result<Arc<str>, Diagnostic>>,
}

impl IdTemplate {
    /// Compiles a text against the parameters of a row.
    ///
    /// # Errors
    /// What the template engine refuses, and every name that is not a parameter.
    pub(super) fn compile(text: &Text, row: &Row) -> Result<Self, Vec<Diagnostic>> {
        if !is_template(&text.text) {
            return Ok(Self {
                pieces: vec![Piece::Literal(text.text.clone())],
            });
        }
        let whole = Template::compile(text, Mode::Plain).map_err(|found| vec![found])?;
        let unknown = whole.check_vars(row.names().iter().map(AsRef::as_ref));
        if !unknown.is_empty() {
            return Err(unknown);
        }
        let pieces = cut(text, row).unwrap_or_else(|| vec![rendered(whole, row)]);
        Ok(Self { pieces })
    }

    /// The text for one cell.
    ///
    /// # Errors
    /// What the template engine reports; the same finding for all cells that share it.
    pub(super) fn render(&mut self, row: &Row) -> Result<String, Diagnostic> {
        let mut out = String::with_capacity(32);
        for piece in &mut self.pieces {
            match piece {
                Piece::Literal(text) => out.push_str(text),
                Piece::Name(slot, rendered) => match row.get(*slot).map(|s| &s.value) {
                    Some(Value::Int(value)) => {
                        use std::fmt::Write as _;
                        // Writing to a string does not fail.
                        let _ = write!(out, "{value}");
                    }
                    Some(Value::Str(value)) => out.push_str(value),
                    _ => out.push_str(&rendered.text(row)?),
                },
                Piece::Rendered(rendered) => out.push_str(&rendered.text(row)?),
            }
        }
        Ok(out)
    }

    /// Whether all settings that it mentions have a value.
    pub(super) fn is_ready(&self, row: &Row) -> bool {
        self.pieces.iter().all(|piece| match piece {
            Piece::Literal(_) => true,
            Piece::Name(_, rendered) | Piece::Rendered(rendered) => rendered.memo.is_ready(row),
        })
    }

    /// Whether it is the same for all cells.
    pub(super) fn is_constant(&self) -> bool {
        self.pieces
            .iter()
            .all(|piece| matches!(piece, Piece::Literal(_)))
    }

    /// The places of the settings that it mentions, sorted.
    pub(super) fn slots(&self) -> Vec<usize> {
        let mut slots: Vec<usize> = self
            .pieces
            .iter()
            .flat_map(|piece| match piece {
                Piece::Literal(_) => &[][..],
                Piece::Name(_, rendered) | Piece::Rendered(rendered) => rendered.memo.slots(),
            })
            .copied()
            .collect();
        slots.sort_unstable();
        slots.dedup();
        slots
    }
}

impl Rendered {
    fn text(&mut self, row: &Row) -> Result<Arc<str>, Diagnostic> {
        let template = &self.template;
        self.memo
            .get(row, |row, slots| {
                template.render(&row.scope(slots)).map(Arc::from)
            })
            .clone()
    }
}

/// Whether a text has anything to render.
pub(super) fn is_template(text: &str) -> bool {
    ["{{", "{%", "{#"].iter().any(|open| text.contains(open))
}

fn rendered(template: Template, row: &Row) -> Piece {
    let slots = template.vars().iter().filter_map(|name| row.slot(name));
    let memo = Memo::new(slots.collect());
    Piece::Rendered(Rendered { template, memo })
}

/// Cuts at `{{ … }}`; `None` when the text has statements, comments, whitespace control or braces
/// in a place that this simple scan could mistake.
fn cut(text: &Text, row: &Row) -> Option<Vec<Piece>> {
    let whole = &text.text;
    if ["{%", "{#", "{{-", "{{+", "-}}", "+}}", "\n", "\r"]
        .iter()
        .any(|token| whole.contains(token))
    {
        return None;
    }
    let mut pieces = Vec::new();
    let mut at = 0;
    while let Some(open) = whole[at..].find("{{") {
        let open = at + open;
        let close = open + whole[open..].find("}}")? + 2;
        let inner = &whole[open + 2..close - 2];
        if inner.contains(['{', '}', '"', '\'']) || whole[close..].starts_with('}') {
            return None;
        }
        if open > at {
            pieces.push(Piece::Literal(whole[at..open].to_owned()));
        }
        let part = Text {
            text: whole[open..close].to_owned(),
            site: text.locate(open..close),
        };
        let template = Template::compile(&part, Mode::Plain).ok()?;
        let piece = rendered(template, row);
        pieces.push(match (row.slot(inner.trim()), piece) {
            (Some(slot), Piece::Rendered(rendered)) => Piece::Name(slot, rendered),
            (_, piece) => piece,
        });
        at = close;
    }
    if at < whole.len() {
        pieces.push(Piece::Literal(whole[at..].to_owned()));
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Site, SourceFile};
    use crate::plan::model::{Setting, Source};
    use proptest::prelude::*;

    fn text(text: &str) -> Text {
        Text {
            text: text.to_owned(),
            site: Site {
                file: Arc::new(SourceFile::new("t", text)),
                range: 0..text.len(),
            },
        }
    }

    fn row() -> Row {
        let values = [
            ("a", Value::Int(1024)),
            ("b", Value::Str("efa".into())),
            ("c", Value::Float(2.0)),
            ("d", Value::Float(0.5)),
            ("e", Value::Bool(true)),
        ];
        let mut row = Row::new(values.iter().map(|(name, _)| Arc::from(*name)).collect());
        for (slot, (_, value)) in values.into_iter().enumerate() {
            row.set(
                slot,
                Some(Arc::new(Setting {
                    value,
                    source: Source::Plan,
                    site: None,
                })),
            );
        }
        row
    }

    #[test]
    fn what_a_template_mentions_is_known() {
        let template = IdTemplate::compile(&text("x-{{ c }}-{{ a | size }}-{{ a }}"), &row());
        assert_eq!(template.unwrap().slots(), [0, 2]);
        let found = IdTemplate::compile(&text("{{ nope }}"), &row()).unwrap_err();
        assert_eq!(found[0].code, "undefined-variable");
        assert!(
            IdTemplate::compile(&text("p2"), &row())
                .unwrap()
                .is_constant()
        );
    }

    proptest! {
        #[test]
        fn cut_or_whole_the_text_is_the_same(parts in proptest::collection::vec(
            prop_oneof![
                Just("{{ a }}"), Just("{{a}}"), Just("{{ a | size }}"), Just("{{ b }}"), Just("{{ b | upper }}"),
                Just("{{ c }}"), Just("{{ d }}"), Just("{{ e }}"), Just("{{ a * 2 }}"), Just("{{ 'x}}' }}"),
                Just("{{ {'k': 1}.k }}"), Just("{% if e %}y{% endif %}"), Just(" {{- a }}"), Just("{# no #}"),
                Just("-"), Just("p"), Just(" "), Just("}"), Just("}}"), Just("\n"),
            ], 0..6)
        ) {
            let text = text(&parts.concat());
            let whole = Template::compile(&text, Mode::Plain);
            let cut = IdTemplate::compile(&text, &row());
            prop_assert_eq!(whole.is_ok(), cut.is_ok());
            if let (Ok(whole), Ok(mut cut)) = (whole, cut) {
                let all: Vec<usize> = (0..5).collect();
                let (whole, cut) = (whole.render(&row().scope(&all)), cut.render(&row()));
                if is_template(&text.text) {
                    prop_assert_eq!(whole.is_ok(), cut.is_ok());
                    if let (Ok(whole), Ok(cut)) = (whole, cut) {
                        prop_assert_eq!(whole, cut);
                    }
                } else {
                    prop_assert_eq!(cut.unwrap(), text.text);
                }
            }
        }
    }
}
