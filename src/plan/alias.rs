//! Short names of layers: `L2` for `L2-EFA`. A layer has an alias only when nothing else in its
//! plan could be meant by it.

use std::collections::HashMap;

use super::model::Layer;

/// The part of an id before the first `-`, when there is more behind it.
pub(super) fn short(id: &str) -> Option<&str> {
    let (short, rest) = id.split_once('-')?;
    (!short.is_empty() && !rest.is_empty()).then_some(short)
}

/// Gives every layer its alias, unless another layer has the same or has it as its id.
pub(super) fn assign(layers: &mut [Layer]) {
    let mut claims: HashMap<String, usize> = HashMap::new();
    for layer in layers.iter() {
        let id = layer.label.name();
        for claim in [Some(id), short(id)].into_iter().flatten() {
            *claims.entry(claim.to_owned()).or_default() += 1;
        }
    }
    for layer in layers {
        let alias = short(layer.label.name()).filter(|alias| claims.get(*alias) == Some(&1));
        layer.alias = alias.filter(|alias| *alias != "all").map(str::to_owned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Site, SourceFile};
    use crate::label::Label;
    use std::sync::Arc;

    fn aliases(ids: &[&str]) -> Vec<Option<String>> {
        let file = Arc::new(SourceFile::new("p", ""));
        let mut layers: Vec<Layer> = ids
            .iter()
            .map(|id| Layer {
                label: Label::new("p", id).unwrap(),
                alias: None,
                title: String::new(),
                adhoc: false,
                site: Site {
                    file: file.clone(),
                    range: 0..0,
                },
            })
            .collect();
        assign(&mut layers);
        layers.into_iter().map(|layer| layer.alias).collect()
    }

    #[test]
    fn only_what_is_unambiguous_is_short() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(aliases(&["L1-Unified", "L2-EFA"]), [some("L1"), some("L2")]);
        assert_eq!(
            aliases(&["L2-EFA", "L2-TCP", "L3-x-y"]),
            [None, None, some("L3")]
        );
        assert_eq!(aliases(&["L2", "L2-EFA"]), [None, None]);
        assert_eq!(aliases(&["plain", "x-", "all-of-it"]), [None, None, None]);
    }
}
