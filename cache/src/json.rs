//! Canonical JSON: keys in ascending byte order, no white space, shortest numbers that read back
//! exactly. Equal documents have equal bytes, so their digest can name them.

use crate::error::{Error, Result};
use serde::Serialize;

/// The canonical bytes of a document.
///
/// # Errors
/// [`Error::Invalid`] when the document has no JSON form (a number that is not finite).
pub fn canonical_json(document: &impl Serialize) -> Result<Vec<u8>> {
    let invalid = |e: serde_json::Error| Error::invalid(e.to_string());
    let mut tree = serde_json::to_value(document).map_err(invalid)?;
    tree.sort_all_objects();
    serde_json::to_vec(&tree).map_err(invalid)
}

/// For `serialize_with`: a float that JSON can say. `serde_json` itself would write null.
pub(crate) fn finite<S: serde::Serializer>(float: &f64, s: S) -> Result<S::Ok, S::Error> {
    if float.is_finite() {
        s.serialize_f64(*float)
    } else {
        Err(serde::ser::Error::custom(format!(
            "a finite number was expected, not {float}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn order_and_space_do_not_matter() {
        let text = r#" { "b" : [ {"z":1, "a":2} ], "a": 0.1, "B": "é\n" } "#;
        let document: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(
            String::from_utf8(canonical_json(&document).unwrap()).unwrap(),
            r#"{"B":"é\n","a":0.1,"b":[{"a":2,"z":1}]}"#
        );
        assert_eq!(canonical_json(&json!({})).unwrap(), b"{}");
    }

    proptest! {
        #[test]
        fn floats_survive(float in any::<f64>().prop_filter("finite", |f| f.is_finite())) {
            let bytes = canonical_json(&float).unwrap();
            let back: f64 = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(back.to_bits(), float.to_bits());
        }
    }
}
