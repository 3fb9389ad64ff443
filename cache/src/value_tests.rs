//! Tests of [`Value`], and the strategy for arbitrary values that other tests share.

use super::*;
use proptest::prelude::*;

/// Arbitrary values in canonical form, three levels deep.
pub(crate) fn any_value() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<f64>(),
        prop_oneof![
            Just(0.0),
            Just(-0.0),
            Just(1e16),
            Just(0.1),
            Just(2_f64.powi(63))
        ],
        any::<i32>().prop_map(f64::from),
    ]
    .prop_filter("finite", |f| f.is_finite())
    .prop_map(|f| Value::float(f).unwrap());
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        number,
        "[a-c]{0,3}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
            prop::collection::btree_map("[a-c]{0,2}", inner, 0..4).prop_map(Value::Map),
        ]
    })
}

fn hash(value: &Value) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[test]
fn equal_numbers_are_one() {
    let zero = [Value::Int(0), Value::Float(0.0), Value::Float(-0.0)];
    for a in &zero {
        for b in &zero {
            assert_eq!(a, b);
            assert_eq!(hash(a), hash(b));
            assert_eq!(serde_json::to_string(a).unwrap(), "0");
        }
    }
    assert!(matches!(Value::float(1e18).unwrap(), Value::Int(_)));
    assert!(matches!(Value::float(1e19).unwrap(), Value::Float(_)));
    assert_eq!(
        Value::float(-(2_f64.powi(63))).unwrap(),
        Value::Int(i64::MIN)
    );
    assert_ne!(Value::float(0.5).unwrap(), Value::Int(0));
    assert_ne!(Value::from("0"), Value::Int(0));
    assert_ne!(Value::from(false), Value::Int(0));
}

#[test]
fn what_has_no_canonical_form_is_refused() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let error = Value::float(bad).unwrap_err();
        assert!(error.to_string().contains("finite number"), "{error}");
        assert!(serde_json::to_string(&Value::Float(bad)).is_err());
    }
    assert!(Value::try_from(u64::MAX).is_err());
    assert_eq!(
        Value::try_from(1_u64 << 63).unwrap(),
        Value::Float(2_f64.powi(63))
    );
    assert_eq!(Value::try_from(7_usize).unwrap(), Value::Int(7));
    let twice = serde_json::from_str::<Value>(r#"{"a":1,"a":2}"#).unwrap_err();
    assert!(twice.to_string().contains("`a` is given twice"), "{twice}");
    assert!(serde_json::from_str::<Value>("18446744073709551615").is_err());
}

#[test]
fn people_see_compact_unambiguous_text() {
    let map = BTreeMap::from([
        ("b".to_owned(), Value::from(vec![1, 2])),
        ("a".to_owned(), Value::from("x y")),
    ]);
    for (value, text) in [
        (Value::from("efa"), "efa"),
        (Value::from("3"), "\"3\""),
        (Value::from("true"), "\"true\""),
        (Value::from(""), "\"\""),
        (Value::from("a\nb"), "\"a\\nb\""),
        (Value::from(3), "3"),
        (Value::Float(3.0), "3"),
        (Value::Float(0.25), "0.25"),
        (Value::Float(1e300), "1e300"),
        (Value::Null, "null"),
        (Value::from(map), "{a: x y, b: [1, 2]}"),
    ] {
        assert_eq!(value.to_string(), text);
    }
}

#[test]
fn whole_and_broken_numbers_are_in_numeric_order() {
    let sorted = [
        Value::Float(-1e19),
        Value::Int(i64::MIN),
        Value::Float(-1.5),
        Value::Int(-1),
        Value::Float(-0.5),
        Value::Float(-0.0),
        Value::Float(0.5),
        Value::Int(1),
        Value::Int(i64::MAX),
        Value::Float(1e19),
    ];
    for (i, a) in sorted.iter().enumerate() {
        for (j, b) in sorted.iter().enumerate() {
            assert_eq!(a.cmp(b), i.cmp(&j), "{a} against {b}");
        }
    }
}

proptest! {
    #[test]
    fn json_round_trips_exactly(value in any_value()) {
        let text = serde_json::to_string(&value).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Value>(&text).unwrap(), &value);
        prop_assert_eq!(&Value::from_json(&value.to_json()).unwrap(), &value);
    }

    #[test]
    fn order_and_hash_agree_with_equality(a in any_value(), b in any_value(), c in any_value()) {
        prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
        prop_assert_eq!(a == b, a.cmp(&b) == Ordering::Equal);
        if a == b {
            prop_assert_eq!(hash(&a), hash(&b));
        }
        let mut sorted = [&a, &b, &c];
        sorted.sort();
        prop_assert!(sorted[0] <= sorted[1] && sorted[1] <= sorted[2] && sorted[0] <= sorted[2]);
    }

    #[test]
    fn a_float_compares_as_a_float(a in any::<i32>(), b in -1e9..1e9_f64) {
        let (x, y) = (Value::from(a), Value::float(b).unwrap());
        prop_assert_eq!(x.cmp(&y), f64::from(a).partial_cmp(&b).unwrap());
    }
}
