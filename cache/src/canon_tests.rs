//! The encoding against a naive decoder (what can be decoded without loss is injective), golden
//! bytes and golden keys.

use super::*;
use crate::value::tests::any_value;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Reads the format back the slow way, knowing nothing of the encoder but the format text.
fn decode_value(bytes: &mut &[u8]) -> Value {
    fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
        let (head, tail) = bytes.split_at(N);
        *bytes = tail;
        head.try_into().unwrap()
    }
    fn text(bytes: &mut &[u8]) -> String {
        let len = u64::from_le_bytes(take(bytes)) as usize;
        let (head, tail) = bytes.split_at(len);
        *bytes = tail;
        String::from_utf8(head.to_vec()).unwrap()
    }
    match take::<1>(bytes)[0] {
        0 => Value::Null,
        1 => Value::Bool(false),
        2 => Value::Bool(true),
        3 => Value::Int(i64::from_le_bytes(take(bytes))),
        4 => Value::Float(f64::from_le_bytes(take(bytes))),
        5 => Value::Str(text(bytes)),
        6 => {
            let count = u64::from_le_bytes(take(bytes));
            Value::List((0..count).map(|_| decode_value(bytes)).collect())
        }
        7 => {
            let count = u64::from_le_bytes(take(bytes));
            let pairs: Vec<_> = (0..count)
                .map(|_| (text(bytes), decode_value(bytes)))
                .collect();
            assert!(pairs.is_sorted_by(|a, b| a.0 < b.0), "keys must ascend");
            Value::Map(pairs.into_iter().collect())
        }
        tag => panic!("unknown tag {tag}"),
    }
}

fn decode_key(mut bytes: &[u8]) -> (String, u32, Vec<(String, Value)>) {
    let b = &mut bytes;
    fn text(b: &mut &[u8]) -> String {
        let len = u64::from_le_bytes(b[..8].try_into().unwrap()) as usize;
        let text = String::from_utf8(b[8..8 + len].to_vec()).unwrap();
        *b = &b[8 + len..];
        text
    }
    assert_eq!(&b[..12], b"doe-key\0\x01\0\0\0");
    *b = &b[12..];
    let domain = text(b);
    let version = u32::from_le_bytes(b[..4].try_into().unwrap());
    *b = &b[4..];
    let mut entries = Vec::new();
    while b[0] == 0x10 {
        *b = &b[1..];
        let path = text(b);
        entries.push((path, decode_value(b)));
    }
    assert_eq!(*b, [0x11]);
    (domain, version, entries)
}

fn encoded(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    encode_value(&mut out, value);
    out
}

fn key_bytes(domain: &str, version: u32, entries: &BTreeMap<String, Value>) -> Vec<u8> {
    let mut encoder = KeyEncoder::new(domain, version);
    for (path, value) in entries {
        encoder.entry(path, value);
    }
    encoder.finish_bytes().to_vec()
}

#[test]
fn golden_bytes() {
    let map = BTreeMap::from([
        ("b".to_owned(), Value::Null),
        (
            "a".to_owned(),
            Value::List(vec![Value::from(true), Value::Float(0.5)]),
        ),
    ]);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(
        hex(&encoded(&Value::Map(map))),
        concat!(
            "07",
            "0200000000000000",
            "0100000000000000",
            "61",
            "06",
            "0200000000000000",
            "02",
            "04",
            "000000000000e03f",
            "0100000000000000",
            "62",
            "00",
        )
    );
    assert_eq!(hex(&encoded(&Value::Float(-1.0))), "03ffffffffffffffff");
    assert_eq!(
        hex(&key_bytes(
            "d",
            2,
            &BTreeMap::from([("p".to_owned(), Value::from("é"))])
        )),
        concat!(
            "646f652d6b657900",
            "01000000",
            "0100000000000000",
            "64",
            "02000000",
            "10",
            "0100000000000000",
            "70",
            "05",
            "0200000000000000",
            "c3a9",
            "11",
        )
    );
}

/// These digests are a promise to every store on disk: if one changes, raise the version.
#[test]
fn golden_keys() {
    let mut encoder = KeyEncoder::new("doe.spec", 1);
    assert_eq!(encoder.finish().hex(), GOLDEN[0]);
    encoder.restart("doe.spec", 1);
    encoder.entry("setting.max_tokens", &Value::from(128));
    encoder.entry("setting.transport", &Value::from("efa"));
    assert_eq!(encoder.finish().hex(), GOLDEN[1]);
    encoder.restart("doe.action", 1);
    encoder.entry("setting.max_tokens", &Value::Float(128.0));
    encoder.text("setting.transport", "efa");
    assert_eq!(encoder.finish().hex(), GOLDEN[2]);
}

/// Made by an independent encoder in another language.
const GOLDEN: [&str; 3] = [
    "dc9293f20cae7adbc99635672d09a9004440e444b4ad2dc7202f31f2f47ad80e",
    "5c150bde9b1c1a4434cbc41639e39b953bebe353802a0db20fe23a0d0a62b167",
    "308f90f987dfd9fabd150b97e939a254480724a5a875ee086b39cdafdeb0f92f",
];

#[test]
fn near_misses_differ() {
    // Pairs that meet in encoders without lengths, tags or domains.
    let pairs = [
        (Value::from(vec!["ab", "c"]), Value::from(vec!["a", "bc"])),
        (Value::from(vec!["a"]), Value::from("a")),
        (Value::List(vec![]), Value::Null),
        (Value::from("1"), Value::from(1)),
        (Value::from(true), Value::from(1)),
        (Value::from(""), Value::Null),
        (Value::Map(BTreeMap::new()), Value::List(vec![])),
    ];
    for (a, b) in pairs {
        assert_ne!(encoded(&a), encoded(&b), "{a} against {b}");
    }
    let none = BTreeMap::new();
    assert_ne!(key_bytes("a", 1, &none), key_bytes("b", 1, &none));
    assert_ne!(key_bytes("a", 1, &none), key_bytes("a", 2, &none));
}

#[test]
#[should_panic(expected = "must ascend")]
fn unsorted_entries_are_caught() {
    let mut encoder = KeyEncoder::new("d", 1);
    encoder.text("b", "");
    encoder.text("a", "");
}

proptest! {
    #[test]
    fn what_was_encoded_can_be_read_back(value in any_value()) {
        let bytes = encoded(&value);
        let mut rest = bytes.as_slice();
        prop_assert_eq!(&decode_value(&mut rest), &value);
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn different_values_have_different_bytes(a in any_value(), b in any_value()) {
        prop_assert_eq!(a == b, encoded(&a) == encoded(&b));
    }

    #[test]
    fn keys_can_be_read_back(
        domain in "[a-z.]{0,8}",
        version in any::<u32>(),
        entries in prop::collection::btree_map("[a-c.]{0,4}", any_value(), 0..5),
    ) {
        let (d, v, e) = decode_key(&key_bytes(&domain, version, &entries));
        prop_assert_eq!((d, v), (domain, version));
        prop_assert_eq!(e, entries.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn short_cuts_are_the_same(
        path in "[a-z]{0,5}", text in any::<String>(), bytes in any::<[u8; 32]>(),
    ) {
        let digest = Digest::from_bytes(bytes);
        let mut long = KeyEncoder::new("d", 1);
        long.entry(&path, &Value::from(text.as_str()));
        long.entry(&format!("{path}~"), &Value::from(digest));
        let mut short = KeyEncoder::new("d", 1);
        short.text(&path, &text);
        short.digest(&format!("{path}~"), &digest);
        prop_assert_eq!(long.finish(), short.finish());
    }
}
