//! An [`Outline`] on disk: one digest over everything, a head, and the columns as they are in
//! memory, little-endian. What does not match its digest, or does not fit together, is none.

use doe_cache::Digest;
use serde::{Deserialize, Serialize};

use super::{Outline, World};

const MAGIC: &[u8] = b"doe outline 2\n";

#[derive(Serialize, Deserialize)]
struct Head {
    world: World,
    texts: Vec<(String, String)>,
    nodes: usize,
    label_bytes: usize,
    needs: usize,
}

pub(super) fn encode(outline: &Outline) -> std::io::Result<Vec<u8>> {
    let head = serde_json::to_vec(&Head {
        world: outline.world.clone(),
        texts: outline.texts.clone(),
        nodes: outline.len(),
        label_bytes: outline.labels.len(),
        needs: outline.needs.len(),
    })?;
    let mut rest = Vec::with_capacity(head.len() + outline.len() * 100);
    rest.extend_from_slice(&(head.len() as u64).to_le_bytes());
    rest.extend_from_slice(&head);
    rest.extend_from_slice(outline.labels.as_bytes());
    for column in [&outline.label_ends, &outline.need_ends, &outline.needs] {
        column
            .iter()
            .for_each(|number| rest.extend_from_slice(&number.to_le_bytes()));
    }
    for column in [&outline.records, &outline.outputs, &outline.settings] {
        column
            .iter()
            .for_each(|digest| rest.extend_from_slice(digest.as_bytes()));
    }
    let seconds = outline.seconds.iter();
    seconds.for_each(|number| rest.extend_from_slice(&number.to_bits().to_le_bytes()));
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(Digest::of(&rest).as_bytes());
    bytes.append(&mut rest);
    Ok(bytes)
}

pub(super) fn decode(bytes: &[u8]) -> Option<Outline> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (digest, rest) = rest.split_at_checked(Digest::LEN)?;
    if Digest::of(rest).as_bytes() != digest {
        return None;
    }
    let mut rest = Reader(rest);
    let head = u64::from_le_bytes(rest.take(8)?.try_into().ok()?);
    let Head {
        world,
        texts,
        nodes,
        label_bytes,
        needs,
    } = serde_json::from_slice(rest.take(usize::try_from(head).ok()?)?).ok()?;
    let outline = Outline {
        world,
        texts,
        labels: std::str::from_utf8(rest.take(label_bytes)?)
            .ok()?
            .to_owned(),
        label_ends: rest.numbers(nodes)?,
        need_ends: rest.numbers(nodes)?,
        needs: rest.numbers(needs)?,
        records: rest.digests(nodes)?,
        outputs: rest.digests(nodes)?,
        settings: rest.digests(nodes)?,
        seconds: rest
            .take(nodes.checked_mul(8)?)?
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f64::from_bits(u64::from_le_bytes(*bytes)))
            .collect(),
    };
    (rest.0.is_empty() && fits(&outline)).then_some(outline)
}

/// Whether every place leads somewhere: to a node that comes before, to a whole label.
fn fits(outline: &Outline) -> bool {
    let ends = |ends: &[u32], length: usize| {
        ends.is_sorted() && ends.last().map_or(0, |end| *end as usize) == length
    };
    let whole = |end: &u32| outline.labels.is_char_boundary(*end as usize);
    ends(&outline.label_ends, outline.labels.len())
        && ends(&outline.need_ends, outline.needs.len())
        && outline.label_ends.iter().all(whole)
        && (0..outline.len()).all(|at| outline.needs(at).iter().all(|&need| (need as usize) < at))
}

struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn numbers(&mut self, count: usize) -> Option<Vec<u32>> {
        let bytes = self.take(count.checked_mul(4)?)?;
        let numbers = bytes.as_chunks().0.iter();
        Some(numbers.map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    fn digests(&mut self, count: usize) -> Option<Vec<Digest>> {
        let bytes = self.take(count.checked_mul(Digest::LEN)?)?;
        let digests = bytes.as_chunks().0.iter();
        Some(digests.map(|bytes| Digest::from_bytes(*bytes)).collect())
    }
}
