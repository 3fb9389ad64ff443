//! Command lines as glibc's `getopt_long` reads them: short options may be bundled, values may
//! be attached, long names may be shortened while they stay unique, operands may stand anywhere,
//! `--` ends the options. What is wrong is told in glibc's words.

/// Whether an option takes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// No value.
    Nothing,
    /// A value, attached or in the next word.
    Value,
    /// A value only when attached (`-E=3000`, `--name=value`).
    Maybe,
}

/// One option: short letter (or `'\0'`), long name (or empty), value.
pub(super) type Opt = (char, &'static str, Takes);

/// An option that was given: its letter, or its long name where it has no letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub name: String,
    pub value: Option<String>,
}

/// A read command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Line {
    pub options: Vec<Given>,
    pub operands: Vec<String>,
}

impl Line {
    pub(super) fn has(&self, name: &str) -> bool {
        self.options.iter().any(|o| o.name == name)
    }

    /// The value of the last option of that name.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.options
            .iter()
            .rev()
            .find(|o| o.name == name)
            .and_then(|o| o.value.as_deref())
    }
}

/// Reads `args` of the program `tool`. A program without any long option is one that calls
/// `getopt`, to which `--name` is a bundle of letters that begins with `-`.
///
/// # Errors
/// What glibc would write to standard error, without the newline.
pub(super) fn parse(tool: &str, args: &[String], options: &[Opt]) -> Result<Line, String> {
    let mut line = Line::default();
    let any_long = options.iter().any(|o| !o.1.is_empty());
    let mut words = args.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            line.operands.extend(words.by_ref().cloned());
        } else if let Some(long) = word.strip_prefix("--").filter(|_| any_long) {
            let (name, attached) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            let opt = find_long(tool, name, options)?;
            let value = match (opt.2, attached) {
                (Takes::Nothing, Some(_)) => {
                    return Err(format!(
                        "{tool}: option '--{}' doesn't allow an argument",
                        opt.1
                    ));
                }
                (Takes::Value, None) => match words.next() {
                    Some(next) => Some(next.clone()),
                    None => {
                        return Err(format!("{tool}: option '--{}' requires an argument", opt.1));
                    }
                },
                (_, attached) => attached,
            };
            line.options.push(given(opt, value));
        } else if word.len() > 1 && word.starts_with('-') {
            let mut rest = &word[1..];
            while let Some(letter) = rest.chars().next() {
                rest = &rest[letter.len_utf8()..];
                let Some(opt) = options.iter().find(|o| o.0 == letter && letter != '\0') else {
                    return Err(format!("{tool}: invalid option -- '{letter}'"));
                };
                let value = match opt.2 {
                    Takes::Nothing => None,
                    Takes::Maybe => {
                        let value = rest.strip_prefix('=').unwrap_or(rest).to_owned();
                        rest = "";
                        (!value.is_empty()).then_some(value)
                    }
                    Takes::Value if rest.is_empty() => match words.next() {
                        Some(next) => Some(next.clone()),
                        None => {
                            return Err(format!(
                                "{tool}: option requires an argument -- '{letter}'"
                            ));
                        }
                    },
                    Takes::Value => {
                        let value = rest.to_owned();
                        rest = "";
                        Some(value)
                    }
                };
                line.options.push(given(opt, value));
            }
        } else {
            line.operands.push(word.clone());
        }
    }
    Ok(line)
}

fn given(opt: &Opt, value: Option<String>) -> Given {
    let name = if opt.0 == '\0' {
        opt.1.to_owned()
    } else {
        opt.0.to_string()
    };
    Given { name, value }
}

fn find_long<'o>(tool: &str, name: &str, options: &'o [Opt]) -> Result<&'o Opt, String> {
    let longs = || options.iter().filter(|o| !o.1.is_empty());
    if let Some(exact) = longs().find(|o| o.1 == name) {
        return Ok(exact);
    }
    let near: Vec<&Opt> = longs().filter(|o| o.1.starts_with(name)).collect();
    match near.as_slice() {
        [only] if !name.is_empty() => Ok(only),
        [] => Err(format!("{tool}: unrecognized option '--{name}'")),
        _ => {
            let names: Vec<String> = near.iter().map(|o| format!("'--{}'", o.1)).collect();
            Err(format!(
                "{tool}: option '--{name}' is ambiguous; possibilities: {}",
                names.join(" ")
            ))
        }
    }
}

/// A number with an optional binary suffix, as most of the tools read sizes (`1M` is 2^20).
pub(super) fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: &[Opt] = &[
        ('p', "port", Takes::Value),
        ('J', "json", Takes::Nothing),
        ('1', "one-off", Takes::Nothing),
        ('E', "", Takes::Maybe),
        ('\0', "omit", Takes::Value),
    ];

    fn read(words: &[&str]) -> Result<Line, String> {
        let args: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        parse("tool", &args, OPTIONS)
    }

    #[test]
    fn every_way_to_give_an_option_is_read() {
        let line = read(&["-1Jp5201", "host", "--om=3", "-E=99", "--", "-x"]).unwrap();
        assert!(line.has("1") && line.has("J"));
        assert_eq!(line.value("p"), Some("5201"));
        assert_eq!(line.value("omit"), Some("3"));
        assert_eq!(line.value("E"), Some("99"));
        assert_eq!(line.operands, ["host", "-x"]);
        let line = read(&["-E", "host", "--port", "1", "-p", "2"]).unwrap();
        assert_eq!((line.value("E"), line.value("p")), (None, Some("2")));
    }

    #[test]
    fn mistakes_are_told_as_glibc_tells_them() {
        for (words, message) in [
            (vec!["--frob"], "tool: unrecognized option '--frob'"),
            (vec!["-Q"], "tool: invalid option -- 'Q'"),
            (vec!["-p"], "tool: option requires an argument -- 'p'"),
            (vec!["--port"], "tool: option '--port' requires an argument"),
            (
                vec!["--json=1"],
                "tool: option '--json' doesn't allow an argument",
            ),
            (
                vec!["--o", "1"],
                "tool: option '--o' is ambiguous; possibilities: '--one-off' '--omit'",
            ),
        ] {
            assert_eq!(read(&words).unwrap_err(), message);
        }
    }

    #[test]
    fn without_long_options_two_dashes_are_a_letter() {
        let error = parse("tool", &["--frob".to_owned()], &OPTIONS[3..4]).unwrap_err();
        assert_eq!(error, "tool: invalid option -- '-'");
    }

    #[test]
    fn sizes_have_binary_suffixes() {
        assert_eq!(size("64"), Some(64));
        assert_eq!(size("1M"), Some(1 << 20));
        assert_eq!(size("32g"), Some(32 << 30));
        for bad in ["", "k", "-1", "1.5m", "0x10", "99999999999999999999"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }
}
