//! Names of objects below the prefix. What cannot be read back as a name of ours is nothing of
//! ours.

use crate::digest::Digest;

/// Where a record or a blob lies.
pub(super) fn object(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("cas/{}/{}", &hex[..2], &hex[2..])
}

/// Below this are all entries.
pub(super) const ENTRIES: &str = "ac/";

/// Below this are the entries of a key.
pub(super) fn entries(key: &Digest) -> String {
    format!("{ENTRIES}{key}/")
}

/// The entry that lets a key lead to a record.
pub(super) fn entry(key: &Digest, record: &Digest) -> String {
    format!("{}{record}", entries(key))
}

/// Key and record of an entry.
pub(super) fn parse_entry(name: &str) -> Option<(Digest, Digest)> {
    let (key, record) = name.strip_prefix(ENTRIES)?.split_once('/')?;
    Some((key.parse().ok()?, record.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_foreign_ones_do_not() {
        let (key, record) = (Digest::of(b"k"), Digest::of(b"r"));
        assert_eq!(parse_entry(&entry(&key, &record)), Some((key, record)));
        assert!(entry(&key, &record).starts_with(&entries(&key)));
        let hex = key.hex();
        assert_eq!(
            object(&key),
            format!("cas/{}/{}", &hex[..2], &hex[2..]),
            "as in the local store"
        );
        for foreign in [
            "ac/".to_owned(),
            format!("ac/{key}"),
            format!("ac/{key}/"),
            format!("ac/{key}/{record}/x"),
            format!("ac/{}/{record}", key.hex().to_uppercase()),
            format!("cas/{key}/{record}"),
        ] {
            assert_eq!(parse_entry(&foreign), None, "{foreign}");
        }
    }
}
