use super::*;
use proptest::prelude::*;

#[test]
fn every_form_is_read() {
    let one_of = |texts: &[&str]| Condition::OneOf(texts.iter().map(|t| (*t).into()).collect());
    for (text, condition) in [
        (
            "30..40",
            Condition::Range {
                low: 30.0,
                high: 40.0,
            },
        ),
        (
            " 0.5 .. 1e3 ",
            Condition::Range {
                low: 0.5,
                high: 1000.0,
            },
        ),
        (
            "-10..-5",
            Condition::Range {
                low: -10.0,
                high: -5.0,
            },
        ),
        (
            "5..5",
            Condition::Range {
                low: 5.0,
                high: 5.0,
            },
        ),
        ("<80", Condition::Less(80.0)),
        ("< 80", Condition::Less(80.0)),
        ("<= 80", Condition::AtMost(80.0)),
        ("> -1", Condition::Greater(-1.0)),
        (">=1", Condition::AtLeast(1.0)),
        ("49152", Condition::Equal(49152.0)),
        ("-0", Condition::Equal(0.0)),
        ("+4", Condition::Equal(4.0)),
        ("P0", one_of(&["P0"])),
        ("PHB or NODE", one_of(&["PHB", "NODE"])),
        ("PHB  or\tNODE or SYS", one_of(&["PHB", "NODE", "SYS"])),
        ("NVIDIA L40S", one_of(&["NVIDIA L40S"])),
        ("580.126.09", one_of(&["580.126.09"])),
        ("oracle or orb", one_of(&["oracle", "orb"])),
        ("a-b", one_of(&["a-b"])),
    ] {
        assert_eq!(parse(text), Ok(condition), "{text}");
    }
}

#[test]
fn what_is_refused_says_how_to_write_it() {
    for (text, write) in [
        ("", None),
        ("30-40", Some("30..40")),
        ("9 - 12", Some("9..12")),
        ("40-30", Some("30..40")),
        ("-5-5", Some("-5..5")),
        ("30\u{2013}40", Some("30..40")),
        ("3 to 7", Some("3..7")),
        ("5-15us", Some("5..15")),
        ("40..30", Some("30..40")),
        ("30...40", Some("30..40")),
        ("30..=40", Some("30..40")),
        ("30..", Some(">= 30")),
        ("..40", Some("<= 40")),
        ("30ms..40ms", Some("30..40")),
        ("< 500 ms", Some("< 500")),
        ("16GB", Some("16")),
        ("95%", Some("95")),
        ("100 Gbit/s", Some("100")),
        ("=< 3", Some("<= 3")),
        ("\u{2265}1", Some(">= 1")),
        ("== 4", Some("4")),
        ("=4", Some("4")),
        ("!= 4", None),
        ("~4", None),
        (">= 1 and <= 2", Some("1..2")),
        ("<2, >1", Some("1..2")),
        ("<", None),
        ("< fast", None),
        ("nan", None),
        ("1e999", None),
        ("> inf", None),
        ("1..inf", None),
        ("1 or 2", None),
        ("or", Some("PHB or NODE")),
        ("PHB or", Some("PHB or NODE")),
    ] {
        let refusal = parse(text).unwrap_err();
        assert_eq!(refusal.write.as_deref(), write, "{text}: {refusal:?}");
        if let Some(write) = refusal.write {
            assert!(parse(&write).is_ok(), "{text}: the hint {write} is refused");
        }
    }
}

#[test]
fn ends_are_judged_strictly() {
    use Judgement::{Incomparable, Met, Missed};
    for (text, got, judgement) in [
        ("30..40", Got::Number(30.0), Met),
        ("30..40", Got::Number(40.0), Met),
        ("30..40", Got::Number(40.000_001), Missed),
        ("< 80", Got::Number(80.0), Missed),
        ("< 80", Got::Number(79.999), Met),
        ("<= 80", Got::Number(80.0), Met),
        ("> 1", Got::Number(1.0), Missed),
        (">= 1", Got::Number(1.0), Met),
        ("4", Got::Number(4.0), Met),
        ("4", Got::Number(4.1), Missed),
        ("4", Got::Text("4"), Incomparable),
        ("< 80", Got::Number(f64::NAN), Incomparable),
        ("> 1", Got::Number(f64::INFINITY), Incomparable),
        ("PHB or NODE", Got::Text("NODE"), Met),
        ("PHB or NODE", Got::Text("SYS"), Missed),
        ("PHB", Got::Text("phb"), Missed),
        ("PHB", Got::Number(1.0), Incomparable),
    ] {
        assert_eq!(
            judge(&parse(text).unwrap(), got),
            judgement,
            "{text} {got:?}"
        );
    }
}

proptest! {
    #[test]
    fn parsing_never_panics(text in "\\PC{0,24}") {
        let _ = parse(&text);
    }

    #[test]
    fn parsing_of_likely_texts_never_panics(text in "[-+<>=.~0-9eEmsor \u{2013}%]{0,12}") {
        let _ = parse(&text);
    }

    #[test]
    fn what_is_printed_reads_the_same(a in -1e12f64..1e12, b in -1e12f64..1e12, words in proptest::collection::vec("[A-Z]{1,5}", 1..4)) {
        let (a, b) = (a + 0.0, b + 0.0);
        for condition in [
            Condition::Range { low: a.min(b), high: a.max(b) },
            Condition::Less(a), Condition::AtMost(a), Condition::Greater(a),
            Condition::AtLeast(a), Condition::Equal(a), Condition::OneOf(words.clone()),
        ] {
            prop_assert_eq!(parse(&condition.to_string()), Ok(condition));
        }
    }

    #[test]
    fn a_range_is_its_two_comparisons(low in -100i32..100, width in 0i32..50, x in -200i32..200) {
        let (low, high, x) = (f64::from(low), f64::from(low + width), f64::from(x));
        let both = [Condition::AtLeast(low), Condition::AtMost(high)]
            .iter()
            .all(|c| judge(c, Got::Number(x)) == Judgement::Met);
        prop_assert_eq!(judge(&Condition::Range { low, high }, Got::Number(x)) == Judgement::Met, both);
    }
}
