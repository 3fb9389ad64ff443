//! What tests share: golden files. `DOE_BLESS=1` writes them anew; the difference is then for a
//! reviewer to read.

/// Compares with a file under `cache/tests/golden/`.
pub(crate) fn golden(name: &str, found: &str) {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let path = dir.join(name);
    if std::env::var_os("DOE_BLESS").is_some() {
        std::fs::write(&path, format!("{}\n", found.trim_end())).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found.trim_end(), expected.trim_end(), "{}", path.display());
}
