//! Goal: what a directory holds becomes names, nothing is sent unless all of it is good, and what
//! is sent is what is missing. Method: temporary directories and the fake catalog.

use std::os::unix::fs::symlink;
use std::path::Path;

use larder::spec::SpecHash;

use super::super::fake::{Fake, run_on};
use super::*;

struct Tree(tempfile::TempDir);

impl Tree {
    fn new(files: &[&str]) -> Self {
        let tree = Self(tempfile::tempdir().expect("a temporary directory"));
        for file in files {
            tree.write(file, format!("file: {file}\n"));
        }
        tree
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, body: impl AsRef<[u8]>) {
        let path = self.path(path);
        let parent = path.parent().expect("a file in a directory");
        std::fs::create_dir_all(parent).expect("writable");
        std::fs::write(path, body).expect("writable");
    }

    fn args(&self) -> Args {
        args(&[self.0.path()])
    }
}

fn args(paths: &[&Path]) -> Args {
    Args {
        paths: paths.iter().map(|path| path.to_path_buf()).collect(),
        name: None,
        prefix: None,
        expect_rev: None,
        no_validate: false,
        note: String::new(),
        idempotency_key: None,
        dry_run: false,
        verbose: false,
        client: ClientArgs::default(),
    }
}

/// The names, and what was said about the rest.
fn gathered(args: &Args) -> anyhow::Result<(Vec<String>, String)> {
    let mut names = Vec::new();
    let (_, said) = run_on(false, async |screen| {
        let definitions = gather(args, 1 << 20, screen)?;
        names = definitions.iter().map(|def| def.name.to_string()).collect();
        Ok(())
    })?;
    Ok((names, said))
}

fn problems(args: &Args) -> String {
    let error = gathered(args).expect_err("refused");
    assert_eq!(Exit::of(&error), Exit::BadInput, "{error:?}");
    let complaint = error.downcast_ref::<Complaint>().expect("a complaint");
    format!("{complaint:?}")
}

fn published(fake: &Arc<Fake>, args: &Args) -> anyhow::Result<String> {
    let api: Arc<dyn Api> = Arc::clone(fake) as _;
    let (out, _) = run_on(false, async |screen| {
        let definitions = gather(args, 1 << 20, screen)?;
        publish(&api, &definitions, args, screen).await
    })?;
    Ok(out)
}

#[test]
fn a_directory_becomes_names_in_order() {
    let tree = Tree::new(&[
        "b.yaml",
        "etl/child.yml",
        "etl/deep/x.yaml",
        "README.md",
        "a.yaml",
    ]);
    let (names, said) = gathered(&tree.args()).expect("good");
    assert_eq!(names, ["a", "b", "etl/child", "etl/deep/x"]);
    assert_eq!(said, "");
}

#[test]
fn a_file_is_named_by_its_stem_unless_told_otherwise() {
    let tree = Tree::new(&["etl/daily.yaml"]);
    let file = tree.path("etl/daily.yaml");
    let mut args = args(&[&file]);
    assert_eq!(gathered(&args).expect("good").0, ["daily"]);
    args.prefix = Some("team-a".into());
    assert_eq!(gathered(&args).expect("good").0, ["team-a/daily"]);
    args.name = Some("reports/x".parse().expect("good"));
    assert_eq!(gathered(&args).expect("good").0, ["team-a/reports/x"]);
    args.paths.push(tree.0.path().into());
    let error = gathered(&args).expect_err("a name for a directory");
    assert_eq!(Exit::of(&error), Exit::Usage);
}

#[test]
fn dotfiles_and_links_that_leave_the_tree_are_skipped_and_said() {
    let outside = Tree::new(&["secret.yaml"]);
    let tree = Tree::new(&["a.yaml", ".hidden.yaml", ".git/x.yaml"]);
    symlink(outside.path("secret.yaml"), tree.path("out.yaml")).expect("linked");
    symlink(outside.0.path(), tree.path("folder")).expect("linked");
    symlink(tree.path("a.yaml"), tree.path("in.yaml")).expect("linked");
    symlink(tree.0.path(), tree.path("loop")).expect("linked");
    let (names, said) = gathered(&tree.args()).expect("good");
    assert_eq!(names, ["a", "in"]);
    for skipped in [
        "/.hidden.yaml: ",
        "/.git: ",
        "/out.yaml: ",
        "/folder: ",
        "/loop: ",
    ] {
        assert!(said.contains(skipped), "{skipped} is not in {said}");
    }
}

#[test]
fn two_files_of_one_name_are_both_named() {
    let tree = Tree::new(&["x.yaml", "x.yml"]);
    let problems = problems(&tree.args());
    assert!(problems.contains("x.yaml and "), "{problems}");
    assert!(problems.contains("x.yml are both named `x`"), "{problems}");
}

#[test]
fn every_problem_is_told_with_its_place() {
    let tree = Tree::new(&["good.yaml", "bad name.yaml"]);
    tree.write("syntax.yaml", "steps:\n  - a: [\n");
    tree.write("empty.yaml", "\n");
    tree.write("latin.yaml", b"a: \xe4\n");
    tree.write("large.yaml", "#".repeat((1 << 20) + 1));
    let problems = problems(&tree.args());
    for expected in [
        "5 files cannot be published, so nothing was",
        "bad name.yaml: ' ' is not allowed in a name",
        "syntax.yaml:3:1: ",
        "empty.yaml: it is empty",
        "latin.yaml: it is not UTF-8: byte 3",
        "large.yaml: it has 1048577 bytes, at most 1048576 are allowed",
    ] {
        assert!(
            problems.contains(expected),
            "{expected} is not in {problems}"
        );
    }
}

#[test]
fn many_problems_are_counted() {
    let tree = Tree::new(&[]);
    for index in 0..25 {
        tree.write(&format!("{index}.yaml"), "");
    }
    let problems = problems(&tree.args());
    assert!(problems.contains("25 files"), "{problems}");
    assert!(problems.contains("and 5 more"), "{problems}");
}

#[test]
fn what_is_not_there_is_an_error_and_so_is_an_empty_directory() {
    let tree = Tree::new(&["README.md"]);
    assert!(problems(&tree.args()).contains("there is no .yaml or .yml file"));
    assert!(problems(&args(&[&tree.path("gone.yaml")])).contains("gone.yaml: "));
    symlink(tree.path("gone"), tree.path("broken.yaml")).expect("linked");
    assert!(problems(&tree.args()).contains("broken.yaml: "));
}

#[test]
fn without_validation_text_need_not_be_yaml() {
    let tree = Tree::new(&[]);
    tree.write("a.yaml", "a: [\n");
    let mut args = tree.args();
    args.no_validate = true;
    assert_eq!(gathered(&args).expect("text").0, ["a"]);
}

#[test]
fn only_missing_bodies_travel_and_all_names_go_in_one_revision() {
    let tree = Tree::new(&["a.yaml", "b.yaml"]);
    tree.write("copy.yaml", "file: b.yaml\n");
    let fake = Arc::new(Fake::with(&[("a", "file: a.yaml\n")]));
    let mut args = tree.args();
    args.note = "why".into();
    let out = published(&fake, &args).expect("published");
    assert_eq!(out.lines().last(), Some("revision 2, 2 of 3 names changed"));
    assert_eq!(fake.received(), [SpecHash::of(b"file: b.yaml\n")]);
    let history = fake.history();
    assert_eq!((history.len(), history[1].changes.len()), (2, 3));
    assert_eq!(history[1].note, "why");

    let again = published(&fake, &args).expect("fine");
    assert_eq!(again.lines().last(), Some("nothing changed, revision 2"));
}

#[test]
fn bodies_that_got_lost_are_sent_once_more_and_not_for_ever() {
    let tree = Tree::new(&["a.yaml"]);
    let fake = Arc::new(Fake::default());
    fake.forget_bodies(1);
    published(&fake, &tree.args()).expect("published at the second try");
    assert_eq!(fake.received().len(), 2);

    tree.write("a.yaml", "another: 1\n");
    fake.forget_bodies(2);
    let error = published(&fake, &tree.args()).expect_err("lost twice");
    assert_eq!(Exit::of(&error), Exit::Refused);
}

#[test]
fn an_expectation_that_lost_changes_nothing() {
    let tree = Tree::new(&["a.yaml"]);
    let fake = Arc::new(Fake::with(&[("a", "x: 1\n")]));
    let mut args = tree.args();
    args.expect_rev = Some(Revision::ZERO);
    let error = published(&fake, &args).expect_err("it exists");
    assert_eq!(Exit::of(&error), Exit::Refused);
    assert_eq!(fake.history().len(), 1);
    args.expect_rev = Some(Revision::new(1));
    published(&fake, &args).expect("as expected");
    tree.write("b.yaml", "x: 1\n");
    let error = published(&fake, &args).expect_err("two names");
    assert_eq!(Exit::of(&error), Exit::Usage);
}

#[test]
fn a_file_that_changes_after_the_check_is_not_published() {
    let tree = Tree::new(&["a.yaml"]);
    let fake = Arc::new(Fake::default());
    let api: Arc<dyn Api> = Arc::clone(&fake) as _;
    let args = tree.args();
    let error = run_on(false, async |screen| {
        let definitions = gather(&args, 1 << 20, screen)?;
        tree.write("a.yaml", "half a f");
        publish(&api, &definitions, &args, screen).await
    })
    .expect_err("changed");
    assert!(
        error
            .to_string()
            .ends_with("a.yaml changed while it was being published")
    );
    assert!(fake.history().is_empty());
}

#[test]
fn a_dry_run_compares_and_changes_nothing() {
    let tree = Tree::new(&["new.yaml", "same.yaml", "old.yaml"]);
    let fake = Fake::with(&[("same", "file: same.yaml\n"), ("old", "x: 1\n")]);
    fake.page_by(1);
    let (out, _) = run_on(false, async |screen| {
        let definitions = gather(&tree.args(), 1 << 20, screen)?;
        compare(&fake, &definitions, screen).await
    })
    .expect("compared");
    let verdicts: Vec<_> = out
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    assert_eq!(verdicts, ["new", "changed", "same"]);
    assert_eq!(fake.history().len(), 1);
    assert!(fake.received().is_empty());
}

#[test]
fn a_key_is_shown_as_it_is_taken() {
    let key = random_key();
    assert_eq!(parse_key(&show_key(&key)), Ok(key));
    for bad in [
        "",
        "0x0000000000000000000000000000000",
        "+0000000000000000000000000000000",
    ] {
        assert!(parse_key(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_prefix_is_part_of_a_name() {
    assert_eq!(parse_prefix("team-a/"), Ok("team-a".into()));
    for bad in ["", "/", "/a", "a b", "../x"] {
        assert!(parse_prefix(bad).is_err(), "{bad}");
    }
}

/// Names that a definition refers to and does not hold itself.
fn references(text: &str) -> Vec<String> {
    fn collect(value: &serde_yaml::Value, found: &mut Vec<String>) {
        match value {
            serde_yaml::Value::Mapping(mapping) => {
                let text = |key: &str| mapping.get(key).and_then(serde_yaml::Value::as_str);
                let with = mapping.get("with").and_then(|with| with.get("dag"));
                let dag = with.and_then(serde_yaml::Value::as_str);
                let is_run = text("action").is_some_and(|action| action.starts_with("dag."));
                found.extend(dag.filter(|_| is_run).map(str::to_owned));
                found.extend(text("call").map(str::to_owned));
                mapping.iter().for_each(|(_, value)| collect(value, found));
            }
            serde_yaml::Value::Sequence(items) => {
                items.iter().for_each(|item| collect(item, found));
            }
            _ => {}
        }
    }
    let (mut found, mut own) = (Vec::new(), Vec::new());
    for document in serde_yaml::Deserializer::from_str(text) {
        let value: serde_yaml::Value =
            serde::Deserialize::deserialize(document).expect("checked before");
        own.extend(
            value
                .get("name")
                .and_then(|name| name.as_str())
                .map(str::to_owned),
        );
        collect(&value, &mut found);
    }
    found.retain(|name| !own.contains(name));
    found
}

#[test]
fn the_examples_are_good_and_refer_only_to_each_other() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let (names, said) = gathered(&args(&[&examples])).expect("good");
    assert_eq!((names.len(), said.as_str()), (15, ""));
    let mut referred = Vec::new();
    for name in &names {
        let text = std::fs::read_to_string(examples.join(format!("{name}.yaml")));
        referred.extend(references(&text.expect("readable")));
    }
    for name in &referred {
        assert!(names.contains(name), "there is no example `{name}`");
    }
    for name in names.iter().filter(|name| *name != "nightly") {
        assert!(referred.contains(name), "no example refers to `{name}`");
    }
}
