//! Findings in the order in which they are told: that of files and lines, none twice.

use std::collections::{HashMap, HashSet};

use crate::error::Diagnostic;

/// Sorts findings by file and line, and drops those that say the same at the same place.
pub(super) fn in_file_order(mut diags: Vec<Diagnostic>, ranks: &[String]) -> Vec<Diagnostic> {
    let rank: HashMap<&str, usize> = (ranks.iter().enumerate())
        .map(|(rank, name)| (name.as_str(), rank))
        .collect();
    diags.sort_by_cached_key(|found| match found.sites.first() {
        Some((site, _)) => {
            let rank = rank.get(site.file.name.as_str()).copied();
            (rank.unwrap_or(usize::MAX - 1), site.range.start)
        }
        None => (usize::MAX, 0),
    });
    let mut seen = HashSet::new();
    diags.retain(|found| {
        let place = found
            .sites
            .first()
            .map(|(site, _)| (site.file.name.clone(), site.range.clone()));
        seen.insert((found.code, found.message.clone(), place))
    });
    diags
}
