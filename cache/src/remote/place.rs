//! Where the mirror is and what may be done with it, as text and as types. Credentials have no
//! place in either: a URL that carries some is refused without being repeated.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// `s3://bucket/prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The bucket.
    pub bucket: String,
    /// What all names begin with: empty, or ending in `/`.
    pub prefix: String,
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let rest = text.strip_prefix("s3://").ok_or_else(|| {
            Error::invalid("the mirror must be `s3://BUCKET` or `s3://BUCKET/PREFIX`")
        })?;
        if rest.contains('@') {
            return Err(Error::invalid(
                "the mirror's URL must not carry credentials; they come from the environment, \
                 `~/.aws` or the machine's role",
            ));
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let good = (3..=63).contains(&bucket.len())
            && bucket.chars().all(|c| letter(c) || c == '-' || c == '.')
            && bucket.starts_with(letter)
            && bucket.ends_with(letter)
            && !bucket.contains("..");
        if !good {
            return Err(Error::invalid(format!(
                "`{bucket}` is not the name of a bucket: 3 to 63 lowercase letters, digits, `-` \
                 and `.`, with a letter or digit at both ends"
            )));
        }
        let prefix = prefix.trim_end_matches('/');
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.=+".contains(c);
        let bad =
            |part: &str| part.is_empty() || part == "." || part == ".." || !part.chars().all(plain);
        if !prefix.is_empty() && prefix.split('/').any(bad) {
            return Err(Error::invalid(format!(
                "`{prefix}` cannot be the prefix: letters, digits and `-_.=+` between single `/`"
            )));
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix: match prefix {
                "" => String::new(),
                prefix => format!("{prefix}/"),
            },
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = self.prefix.trim_end_matches('/');
        match prefix {
            "" => write!(f, "s3://{}", self.bucket),
            prefix => write!(f, "s3://{}/{prefix}", self.bucket),
        }
    }
}

/// What may be done with the mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RemoteMode {
    /// Nothing; as if there were none.
    Off,
    /// Results are taken from it.
    Read,
    /// Results are taken from it and sent to it.
    #[default]
    ReadWrite,
}

impl RemoteMode {
    /// `off`, `r`, `rw`.
    pub fn as_str(self) -> &'static str {
        match self {
            RemoteMode::Off => "off",
            RemoteMode::Read => "r",
            RemoteMode::ReadWrite => "rw",
        }
    }

    /// Whether results are taken from it.
    pub fn reads(self) -> bool {
        self != RemoteMode::Off
    }

    /// Whether results are sent to it.
    pub fn writes(self) -> bool {
        self == RemoteMode::ReadWrite
    }

    /// Reads `local:rw,remote:r`, as `doe.toml` has it.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what was expected.
    pub fn of_modes(text: &str) -> Result<Self> {
        let mut remote = None;
        for part in text.split(',').map(str::trim) {
            match part.split_once(':') {
                Some(("local", "rw")) => {}
                Some(("local", _)) => {
                    return Err(Error::invalid(
                        "the local store is always read and written: `local:rw`",
                    ));
                }
                Some(("remote", mode)) if remote.is_none() => remote = Some(mode.parse()?),
                _ => {
                    return Err(Error::invalid(format!(
                        "`{text}` is no mode: `local:rw,remote:off`, `local:rw,remote:r` or \
                         `local:rw,remote:rw`"
                    )));
                }
            }
        }
        Ok(remote.unwrap_or_default())
    }
}

impl FromStr for RemoteMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "off" => Ok(RemoteMode::Off),
            "r" => Ok(RemoteMode::Read),
            "rw" => Ok(RemoteMode::ReadWrite),
            _ => Err(Error::invalid(format!(
                "`{text}` is no mode of the mirror: `off`, `r` or `rw`"
            ))),
        }
    }
}

impl fmt::Display for RemoteMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// All that is said about the mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where.
    pub place: Place,
    /// What may be done.
    pub mode: RemoteMode,
    /// Another server than AWS: `http://127.0.0.1:3900`.
    pub endpoint: Option<String>,
    /// Region; else that of the environment or the profile.
    pub region: Option<String>,
    /// Whether the bucket is part of the path, not of the host name. `None`: when there is an
    /// endpoint.
    pub path_style: Option<bool>,
}

impl Target {
    /// Checks an endpoint.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what was expected.
    pub fn check_endpoint(text: &str) -> Result<()> {
        let rest = text
            .strip_prefix("http://")
            .or_else(|| text.strip_prefix("https://"));
        match rest {
            Some(rest) if rest.contains('@') => Err(Error::invalid(
                "the endpoint must not carry credentials; they come from the environment, `~/.aws` \
                 or the machine's role",
            )),
            Some(rest) if !rest.is_empty() && !rest.contains(char::is_whitespace) => Ok(()),
            _ => Err(Error::invalid(
                "the endpoint must begin with `https://` or `http://`, for example \
                 `http://127.0.0.1:3900`",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_back() {
        for (text, bucket, prefix) in [
            ("s3://abc", "abc", ""),
            ("s3://abc/", "abc", ""),
            ("s3://a.b-c/x/y_1=z/", "a.b-c", "x/y_1=z/"),
        ] {
            let place: Place = text.parse().unwrap();
            assert_eq!(
                (place.bucket.as_str(), place.prefix.as_str()),
                (bucket, prefix)
            );
            assert_eq!(place.to_string().parse::<Place>().unwrap(), place);
        }
        for bad in [
            "abc",
            "http://abc/x",
            "s3://",
            "s3://ab",
            "s3://Abc",
            "s3://-abc",
            "s3://a..b",
            "s3://abc//x",
            "s3://abc/x/../y",
            "s3://abc/x y",
            "s3://abc/x?y",
        ] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
        let error = "s3://KEY:hunter2@abc/x".parse::<Place>().unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let error = Target::check_endpoint("http://me:hunter2@h").unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn modes() {
        for (text, mode) in [
            ("local:rw,remote:rw", RemoteMode::ReadWrite),
            ("local:rw, remote:r", RemoteMode::Read),
            ("remote:off", RemoteMode::Off),
            ("local:rw", RemoteMode::ReadWrite),
        ] {
            assert_eq!(RemoteMode::of_modes(text).unwrap(), mode, "{text}");
        }
        for bad in [
            "",
            "rw",
            "local:r,remote:r",
            "remote:w",
            "remote:r,remote:rw",
            "far:r",
        ] {
            assert!(RemoteMode::of_modes(bad).is_err(), "{bad}");
        }
    }
}
