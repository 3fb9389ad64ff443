//! Words of a POSIX shell. A quoted word is always read back by `sh` as exactly the text that went
//! in; a text that needs no quotes gets none, so scripts stay readable.

use std::borrow::Cow;

/// Whether a text is one plain word for the shell.
pub(super) fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&b))
}

/// The text as one word of a shell script.
pub fn quote(text: &str) -> Cow<'_, str> {
    if is_plain(text) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("'{}'", text.replace('\'', "'\\''")))
}
