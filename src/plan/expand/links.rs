//! References of a matrix's cells to other patterns, as written: those that are the same for all
//! cells, and those that are templates. They are followed when all plans are expanded.

use super::condition::tell_once;
use super::id::IdTemplate;
use super::memo::Row;
use super::unit::Unit;
use crate::error::Diagnostic;
use crate::plan::schema::Common;
use crate::source::Text;

/// References of one matrix that are the same for all its cells, and the templates of the others.
#[derive(Debug, Default)]
pub(crate) struct UnitLinks {
    /// Data edges.
    pub(crate) needs: Vec<Text>,
    /// Gates.
    pub(crate) gate: Vec<Text>,
    /// Templates of data edges, in the order of [`Links::needs`].
    pub(crate) templated_needs: Vec<Text>,
    /// Templates of gates, in the order of [`Links::gate`].
    pub(crate) templated_gate: Vec<Text>,
    /// Factors that the id template does not mention.
    pub(super) unmentioned: Vec<String>,
}

/// Rendered references of one cell; an empty one means none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links {
    /// Data edges.
    pub(crate) needs: Box<[Box<str>]>,
    /// Gates.
    pub(crate) gate: Box<[Box<str>]>,
}

/// The references of a unit, compiled. A pattern's own add to its layer's.
pub(super) struct LinkTemplates {
    needs: References,
    gate: References,
}

struct References {
    constant: Vec<Text>,
    templated: Vec<(Text, IdTemplate)>,
}

impl LinkTemplates {
    /// Compiles them; what makes no sense is a finding and left out.
    pub(super) fn compile(unit: &Unit<'_>, row: &Row, diags: &mut Vec<Diagnostic>) -> Self {
        Self {
            needs: References::compile(unit, |common| &common.needs, row, diags),
            gate: References::compile(unit, |common| &common.gate, row, diags),
        }
    }

    /// Those of one cell; `None` when no reference is a template.
    pub(super) fn render(&mut self, row: &Row, diags: &mut Vec<Diagnostic>) -> Option<Links> {
        if self.needs.templated.is_empty() && self.gate.templated.is_empty() {
            return None;
        }
        Some(Links {
            needs: self.needs.render(row, diags),
            gate: self.gate.render(row, diags),
        })
    }

    /// What is the same for all cells.
    pub(super) fn unit(self, unmentioned: Vec<String>) -> UnitLinks {
        let texts = |of: Vec<(Text, IdTemplate)>| of.into_iter().map(|(text, _)| text).collect();
        UnitLinks {
            needs: self.needs.constant,
            gate: self.gate.constant,
            templated_needs: texts(self.needs.templated),
            templated_gate: texts(self.gate.templated),
            unmentioned,
        }
    }
}

impl References {
    fn compile(
        unit: &Unit<'_>,
        part: fn(&Common) -> &Vec<Text>,
        row: &Row,
        diags: &mut Vec<Diagnostic>,
    ) -> Self {
        let own = unit.own.map_or(&[][..], |own| part(&own.common));
        let mut references = Self {
            constant: Vec::new(),
            templated: Vec::new(),
        };
        for text in part(&unit.decl.common).iter().chain(own) {
            match IdTemplate::compile(text, row) {
                Ok(template) if template.is_constant() => references.constant.push(text.clone()),
                Ok(template) => references.templated.push((text.clone(), template)),
                Err(found) => found.into_iter().for_each(|found| tell_once(diags, found)),
            }
        }
        references
    }

    fn render(&mut self, row: &Row, diags: &mut Vec<Diagnostic>) -> Box<[Box<str>]> {
        let render = |(_, template): &mut (Text, IdTemplate)| {
            // What has no value is told elsewhere.
            if !template.is_ready(row) {
                return Box::default();
            }
            match template.render(row) {
                Ok(name) => name.trim().into(),
                Err(found) => {
                    tell_once(diags, found);
                    Box::default()
                }
            }
        };
        self.templated.iter_mut().map(render).collect()
    }
}
