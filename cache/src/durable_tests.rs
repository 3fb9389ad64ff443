//! Files are whole or not there, under their own names, and whose sync is believed.

use super::*;

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).map_or_else(
        |_| BTreeSet::new(),
        |dir| {
            dir.map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect()
        },
    )
}

#[test]
fn published_files_are_whole_and_read_only() {
    // Few and many: one sync a file, and one for all.
    for count in [1, SYNC_ALL_FROM - 1, SYNC_ALL_FROM, 3 * SYNC_ALL_FROM] {
        let root = tempfile::tempdir().unwrap();
        let tmp = root.path().join("tmp");
        let file = |i: usize| {
            let to = root
                .path()
                .join(format!("to/{}", i % 3))
                .join(i.to_string());
            (Temp::with(&tmp, i.to_string().as_bytes()).unwrap(), to)
        };
        let (first, second) = ((0..count / 2), (count / 2..count));
        publish(
            root.path(),
            vec![first.map(file).collect(), second.map(file).collect()],
        )
        .unwrap();
        for i in 0..count {
            let path = root.path().join(format!("to/{}/{i}", i % 3));
            assert_eq!(fs::read_to_string(&path).unwrap(), i.to_string());
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o444);
        }
        assert_eq!(names(&tmp), BTreeSet::new(), "{count}");
        sync_folders(root.path()).unwrap();
    }
}

/// Kernels as they name themselves, and whether one sync for all of their files is enough.
#[cfg(target_os = "linux")]
#[test]
fn one_sync_for_all_is_believed_where_it_tells_of_failures() {
    for (release, tells) in [
        ("5.8.0", true),
        ("5.8", true),
        ("5.10.0-28-amd64", true),
        ("6.8.0-1044-aws", true),
        ("10.0.1", true),
        ("5.7.19", false),
        ("5.4.0-150-generic", false),
        ("4.18.0-553.el8_10.x86_64", false),
        ("3.10.0-1160.el7", false),
        ("5", false),
        ("", false),
        ("next", false),
        ("99999999999.1", false),
    ] {
        assert_eq!(
            tells_of_failed_writes(release.as_bytes()),
            tells,
            "{release}"
        );
    }
}

#[test]
fn what_was_not_published_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let tmp = root.path().join("tmp");
    drop(Temp::with(&tmp, b"x").unwrap());
    assert_eq!(names(&tmp), BTreeSet::new());
    // A failure in the middle: the second target's folder cannot be made.
    fs::write(root.path().join("blocked"), b"").unwrap();
    let group = |to: &str| vec![(Temp::with(&tmp, b"x").unwrap(), root.path().join(to))];
    let error = publish(root.path(), vec![group("a/x"), group("blocked/x")]).unwrap_err();
    assert!(error.to_string().contains("create the folder"), "{error}");
    assert!(root.path().join("a/x").exists());
    assert_eq!(names(&tmp), BTreeSet::new());
}

#[test]
fn names_left_by_the_dead_are_stepped_over() {
    let root = tempfile::tempdir().unwrap();
    let (first, _) = Temp::create(root.path()).unwrap();
    let number = |t: &Temp| {
        let name = t.path().file_name().unwrap().to_str().unwrap();
        name.split_once('-').unwrap().1.parse::<u64>().unwrap()
    };
    let taken: Vec<u64> = (1..50).map(|i| number(&first) + i).collect();
    for i in &taken {
        fs::write(
            root.path().join(format!("{}-{i}", std::process::id())),
            b"old",
        )
        .unwrap();
    }
    let (second, _) = Temp::create(root.path()).unwrap();
    assert!(!taken.contains(&number(&second)));
}

#[test]
fn quarantine_never_overwrites() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("quarantine");
    let place = |text: &str| {
        let path = root.path().join("damaged");
        fs::write(&path, text).unwrap();
        let to = quarantine(&path, &dir, "abcd").unwrap();
        assert!(!path.exists());
        let name = to.file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(to).unwrap())
    };
    assert_eq!(place("1"), ("abcd".to_owned(), "1".to_owned()));
    assert_eq!(place("2"), ("abcd.1".to_owned(), "2".to_owned()));
    assert_eq!(fs::read_to_string(dir.join("abcd")).unwrap(), "1");
}
