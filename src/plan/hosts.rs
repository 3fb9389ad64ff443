//! Names of many hosts in one: `node[001-008]`, `gpu[1,3-4]`. Widths are kept, the order is that
//! of the text, and what is no such pattern is an error instead of a host of that name.

/// Most hosts that one name may stand for.
const MOST: usize = 4096;

/// The names that a pattern stands for.
///
/// # Errors
/// What is wrong with it, in words.
pub fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = pattern.split_once('[') else {
        return if pattern.contains(']') {
            Err("a `]` without its `[`".into())
        } else {
            Ok(vec![pattern.to_owned()])
        };
    };
    let (list, after) = rest.split_once(']').ok_or("a `[` without its `]`")?;
    let tails = expand(after)?;
    let mut names = Vec::new();
    for item in list.split(',') {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let number = |text: &str| {
            let digits =
                !text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit());
            let number = digits.then(|| text.parse::<usize>().ok()).flatten();
            number.ok_or_else(|| format!("`{item}` is no number and no range such as `001-008`"))
        };
        let (low, high) = (number(first)?, number(last)?);
        if high < low {
            return Err(format!("`{item}` runs backwards"));
        }
        if (high - low + 1).saturating_mul(tails.len()) + names.len() > MOST {
            return Err(format!("it stands for more than {MOST} hosts"));
        }
        for number in low..=high {
            for tail in &tails {
                names.push(format!(
                    "{before}{number:0width$}{tail}",
                    width = first.len()
                ));
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn ranges_lists_and_widths() {
        let names = |pattern: &str| expand(pattern).unwrap().join(" ");
        assert_eq!(names("node1"), "node1");
        assert_eq!(names("node[8-10]"), "node8 node9 node10");
        assert_eq!(names("node[008-010]"), "node008 node009 node010");
        assert_eq!(names("n[1,3-4].lab"), "n1.lab n3.lab n4.lab");
        assert_eq!(names("r[1-2]n[1-2]"), "r1n1 r1n2 r2n1 r2n2");
        assert_eq!(expand("n[1-4096]").unwrap().len(), 4096);
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in [
            "n[",
            "n]",
            "n[]",
            "n[a]",
            "n[3-1]",
            "n[1-]",
            "n[-1]",
            "n[1-9999]",
            "n[1]]",
            "n[1-99999999999]",
        ] {
            assert!(expand(bad).is_err(), "{bad}");
        }
    }
}
