//! Variables of the environment that a script can be given: what their names may be, and how long
//! they may get. Whoever names one finds out here before anything begins.

/// The longest text that Linux passes to a program as one string (`MAX_ARG_STRLEN`).
pub const LONGEST_BYTES: usize = 128 * 1024 - 1;

/// Variables that shells keep to themselves: they refuse or overwrite them.
const OWN: [&str; 21] = [
    "_",
    "BASHOPTS",
    "BASHPID",
    "BASH_VERSINFO",
    "DOE_GROUP",
    "DOE_TOKEN",
    "EUID",
    "GROUPS",
    "IFS",
    "LINENO",
    "OLDPWD",
    "OPTARG",
    "OPTERR",
    "OPTIND",
    "PPID",
    "PWD",
    "RANDOM",
    "SECONDS",
    "SHELLOPTS",
    "SHLVL",
    "UID",
];

/// Whether a variable can have this name at all.
pub fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next();
    first.is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Whether a variable of this name belongs to the shell, or to `doe`.
pub fn is_own(name: &str) -> bool {
    OWN.contains(&name)
}

/// Whether a program can be given a variable with this value.
pub fn fits(name: &str, value: &str) -> bool {
    name.len() + value.len() < LONGEST_BYTES
}
