mod forward;
mod site;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use larder::answer::{Answer, Failure, Freshness, Hop, Mode, Query};
use larder::api::Api;
use larder::bridge::http::HttpClient;
use larder::catalog::Revision;
use larder::proto::wire::{Publish, PublishName};
use larder::spec::{Spec, Syntax};

use self::forward::Forwarder;
use self::site::Site;
use super::complaint::Complaint;
use super::exit::Exit;
use super::option::GlobalArgs;
use super::screen::Screen;

/// Run a coordinator and three workers and show what they do.
///
/// They are processes of this same program on loopback, with certificates that are made for
/// it, in a directory that goes away at the end. Every line is checked on the answer itself; if
/// one does not hold, the demo says which and fails.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder demo
  larder demo --keep        leave the directory with the logs of all processes")]
pub(crate) struct Args {
    /// Leave the directory with stores, certificates and logs
    #[arg(long)]
    keep: bool,
}

macro_rules! example {
    ($name:literal) => {
        (
            $name,
            include_str!(concat!("../../examples/", $name, ".yaml")),
        )
    };
}

/// The definitions that the demo publishes, as they stand in `examples/`.
const EXAMPLES: &[(&str, &str)] = &[
    example!("nightly"),
    example!("ingest/customers"),
    example!("ingest/files"),
    example!("ingest/orders"),
    example!("ingest/source/database"),
    example!("ingest/source/file"),
    example!("load/partition"),
    example!("load/warehouse"),
    example!("ops/alert"),
    example!("ops/cleanup"),
    example!("report/daily"),
    example!("report/publish"),
    example!("transform/aggregate"),
    example!("transform/clean"),
    example!("transform/join"),
];

/// What the worker's engine is about to start.
const CHILD: &str = "ingest/orders";

/// A definition that takes a while to send.
const LARGE: &str = "load/inventory";

/// Definitions that fill a worker's store, and the length of each in bytes.
const ARCHIVED: u64 = 96;
/// See [`ARCHIVED`].
const ARCHIVED_LEN: usize = 16 << 10;

/// Bytes of its body that pass before the coordinator is killed.
const CUT_AFTER: u64 = 300_000;

/// Short, so that nobody waits long for the end of one.
const LEASE: Duration = Duration::from_secs(1);

pub(crate) fn run(
    args: &Args,
    _global: &GlobalArgs,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let site = Site::new()?;
    let dir = site.dir().to_owned();
    let mut demo = Demo {
        site,
        step: "setting up",
        held: 0,
        began: Instant::now(),
    };
    let result = super::wait(demo.play(screen));
    if args.keep {
        demo.site.keep();
        screen.say(format_args!("kept {}", dir.display()));
    }
    result.map_err(|error| {
        let message = format!("`{}` did not hold: {error:#}", demo.step);
        let complaint = Complaint::new(Exit::General, message);
        complaint
            .hint("`larder demo --keep` leaves the logs of all processes")
            .into()
    })
}

struct Demo {
    site: Site,
    step: &'static str,
    held: u32,
    began: Instant,
}

impl Demo {
    async fn play(&mut self, screen: &mut Screen<'_>) -> anyhow::Result<()> {
        let coordinator = self.site.start_coordinator().await?;
        let addr = coordinator.listen.clone();
        let forwarder = Forwarder::start(&addr)?;
        let one = self.site.start_worker("w1", &addr, &[]).await?;
        let two = self.site.start_worker("w2", &addr, &[&one.listen]).await?;
        let through = forwarder.addr();
        let three = self
            .site
            .start_worker("w3", &through, &[&one.listen, &two.listen])
            .await?;
        let specs: Vec<_> = EXAMPLES
            .iter()
            .map(|(name, text)| (*name, spec(text)))
            .collect();
        let rev = publish(&coordinator.client, &specs).await?;
        say(
            screen,
            format_args!(
                "coordinator {addr}, workers {} {} {}; {} definitions published as revision {rev}",
                one.listen,
                two.listen,
                three.listen,
                specs.len()
            ),
        )?;

        self.miss_then_hit(screen, &one.client).await?;
        self.new_version(
            screen,
            &coordinator.client,
            [&one.client, &two.client, &three.client],
        )
        .await?;
        self.broken_off(
            screen,
            &coordinator.client,
            &forwarder,
            [&one.client, &two.client, &three.client],
        )
        .await?;
        let archived = archive(&coordinator.client, [&one.client, &two.client]).await?;
        self.outage(screen, &one.client, &two.client, &three.client)
            .await?;
        self.damage(screen, &archived, &two.listen).await?;
        let (held, took) = (self.held, self.began.elapsed().as_secs_f64());
        say(screen, format_args!("all {held} checks held, {took:.1} s"))
    }

    /// Steps 1 and 2: from the coordinator, then from the own disk.
    async fn miss_then_hit(
        &mut self,
        screen: &mut Screen<'_>,
        worker: &HttpClient,
    ) -> anyhow::Result<()> {
        self.begin(
            screen,
            "a worker that misses a child gets it from the coordinator",
        )?;
        let answer = strict(worker, CHILD).await?;
        self.check(is_coordinator(&answer), "it came from the coordinator")?;
        self.check(
            answer.spec == Some(example_spec(CHILD)),
            "the bytes are those of the file",
        )?;
        show(screen, "w1", CHILD, &answer)?;

        self.begin(screen, "the second time it comes from its own disk")?;
        let answer = strict(worker, CHILD).await?;
        self.check(answer.proof.source == Hop::Disk, "it came from disk")?;
        self.check(
            matches!(answer.proof.mode, Mode::Asked | Mode::Lease),
            "it is proven to be current",
        )?;
        show(screen, "w1", CHILD, &answer)
    }

    /// Step 3: nobody answers with the old one.
    async fn new_version(
        &mut self,
        screen: &mut Screen<'_>,
        coordinator: &HttpClient,
        workers: [&HttpClient; 3],
    ) -> anyhow::Result<()> {
        self.begin(
            screen,
            "a new version is published and no worker answers with the old one",
        )?;
        for worker in workers {
            strict(worker, CHILD).await?;
        }
        let text = format!("{}\n# second version\n", example_text(CHILD));
        let new = spec(&text);
        let rev = publish(coordinator, &[(CHILD, new.clone())]).await?;
        for (label, worker) in ["w1", "w2", "w3"].into_iter().zip(workers) {
            let answer = strict(worker, CHILD).await?;
            self.check(answer.spec.as_ref() == Some(&new), "it is the new one")?;
            self.check(
                answer.proof.record_rev == Some(rev),
                "it is of the new revision",
            )?;
            show(screen, label, CHILD, &answer)?;
        }
        Ok(())
    }

    /// Step 4: the coordinator is killed while it sends a body.
    async fn broken_off(
        &mut self,
        screen: &mut Screen<'_>,
        coordinator: &HttpClient,
        forwarder: &Forwarder,
        [one, two, three]: [&HttpClient; 3],
    ) -> anyhow::Result<()> {
        self.begin(
            screen,
            "the coordinator breaks off in the middle of a body and a peer gives the bytes",
        )?;
        let large = spec(&large_text());
        let rev = publish(coordinator, &[(LARGE, large.clone())]).await?;
        for peer in [one, two] {
            strict(peer, LARGE).await?;
        }
        forwarder.kill_after(CUT_AFTER, self.site.pid("c1")?);
        // Asked, so that the bytes come with the answer.
        let answer = verified(three, LARGE).await?;
        self.check(
            forwarder.has_fired(),
            "the coordinator was killed in mid-body",
        )?;
        self.check(
            matches!(answer.proof.source, Hop::Peer(_)),
            "a peer gave the bytes",
        )?;
        self.check(answer.spec.as_ref() == Some(&large), "the bytes are right")?;
        self.check(
            answer.proof.record_rev == Some(rev),
            "the coordinator had said what is current",
        )?;
        show(screen, "w3", LARGE, &answer)?;

        self.begin(
            screen,
            "the killed coordinator starts again and has lost nothing",
        )?;
        self.site.restart("c1").await?;
        let status = coordinator.status().await?;
        self.check(
            status["revision"] == rev.get(),
            "its newest revision is the acknowledged one",
        )?;
        let answer = verified(three, LARGE).await?;
        self.check(answer.proof.mode == Mode::Asked, "workers reach it again")?;
        show(screen, "w3", LARGE, &answer)?;
        Ok(())
    }

    /// Step 5: names fail closed, hashes go on.
    async fn outage(
        &mut self,
        screen: &mut Screen<'_>,
        one: &HttpClient,
        two: &HttpClient,
        three: &HttpClient,
    ) -> anyhow::Result<()> {
        strict(one, "report/daily").await?;
        strict(two, CHILD).await?;
        self.site.terminate("c1").await?;
        self.begin(
            screen,
            "the coordinator is stopped: once the lease is over, a read by name fails closed",
        )?;
        let began = Instant::now();
        let failure = loop {
            match strict(two, CHILD).await {
                // Nothing can be published meanwhile, so this is still current.
                Ok(answer) if answer.proof.mode == Mode::Lease && began.elapsed() < LEASE * 2 => {
                    tokio::time::sleep(LEASE / 20).await;
                }
                Ok(answer) => anyhow::bail!("it was answered from {}", answer.proof.source),
                Err(failure) => break failure,
            }
        };
        self.check(
            failure.code == "no-freshness-proof",
            "it says that nothing proves a copy current",
        )?;
        let named = failure
            .hops
            .iter()
            .any(|hop| matches!(hop.hop, Hop::Coordinator(_)));
        self.check(named, "it names the hops that were tried")?;
        say(
            screen,
            format_args!("  w2  {CHILD}  {failure}  {}", millis(began.elapsed())),
        )?;
        for hop in &failure.hops {
            say(screen, format_args!("      tried {hop}"))?;
        }

        self.begin(
            screen,
            "the coordinator is stopped: a read by hash still succeeds from a peer",
        )?;
        let hash = example_spec("report/daily").hash().to_string();
        let answer = strict(three, &hash).await?;
        self.check(
            matches!(answer.proof.source, Hop::Peer(_)),
            "a peer gave the bytes",
        )?;
        self.check(
            answer.spec == Some(example_spec("report/daily")),
            "the bytes are right",
        )?;
        show(screen, "w3", &hash[..15], &answer)
    }

    /// Step 6: a byte on disk is changed.
    async fn damage(
        &mut self,
        screen: &mut Screen<'_>,
        archived: &[Spec],
        peer: &str,
    ) -> anyhow::Result<()> {
        self.begin(screen, "a blob is damaged on disk, noticed, and healed")?;
        // A start leaves most bodies on disk: their bytes change before they are in memory.
        self.site.terminate("w1").await?;
        let one = self.site.restart_with("w1", &["--peer", peer]).await?;
        let noticed = self.notice(&one, archived).await?;
        let (spec, answer) = noticed.context("expected that the damage was noticed")?;
        self.held += 1;
        let hash = spec.hash().to_string();
        self.check(answer.spec.as_ref() == Some(spec), "the bytes are right")?;
        self.check(answer.proof.source != Hop::Disk, "they came from elsewhere")?;
        show(screen, "w1", &hash[..15], &answer)?;

        // What is only in memory does not survive this.
        self.site.terminate("w1").await?;
        let one = self.site.restart("w1").await?;
        let answer = strict(&one, &hash).await?;
        self.check(
            answer.proof.source == Hop::Disk,
            "its own disk has them again",
        )?;
        self.check(answer.spec.as_ref() == Some(spec), "the bytes are right")?;
        let status = one.status().await?;
        let damaged = status["store"]["damaged"].as_array();
        let healed = damaged.is_some_and(|list| list.iter().all(|blob| blob["hash"] != hash));
        self.check(healed, "it does not count as damaged any more")?;
        show(screen, "w1", &hash[..15], &answer)
    }

    /// Changes a byte of one blob after the other until a read has to look at the disk: pages that
    /// sled has rewritten as it started are in memory, and what is read from there is right.
    async fn notice<'a>(
        &self,
        client: &HttpClient,
        archived: &'a [Spec],
    ) -> anyhow::Result<Option<(&'a Spec, Answer)>> {
        for spec in archived {
            let changed = self.site.flip_byte("w1", spec.bytes())?;
            anyhow::ensure!(changed > 0, "a blob is nowhere on disk");
            let answer = strict(client, &spec.hash().to_string()).await?;
            if answer.failed.iter().any(|hop| hop.hop == Hop::Disk) {
                return Ok(Some((spec, answer)));
            }
        }
        Ok(None)
    }

    fn begin(&mut self, screen: &mut Screen<'_>, step: &'static str) -> anyhow::Result<()> {
        self.step = step;
        say(screen, format_args!("\n{step}"))
    }

    fn check(&mut self, holds: bool, what: &str) -> anyhow::Result<()> {
        anyhow::ensure!(holds, "expected that {what}");
        self.held += 1;
        Ok(())
    }
}

/// Data at once: who watches wants to see each line when it happens.
fn say(screen: &mut Screen<'_>, line: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    screen.line(line)?;
    Ok(screen.flush()?)
}

fn show(screen: &mut Screen<'_>, who: &str, what: &str, answer: &Answer) -> anyhow::Result<()> {
    let hash = answer.spec.as_ref().map(|spec| spec.hash().short());
    let rev = answer
        .proof
        .record_rev
        .map(|rev| format!("  revision {rev}"));
    for hop in &answer.failed {
        say(screen, format_args!("  {who}  tried {hop}"))?;
    }
    say(
        screen,
        format_args!(
            "  {who}  {what}  {}{}  from {}  {}",
            hash.as_deref().unwrap_or("absent"),
            rev.as_deref().unwrap_or_default(),
            answer.proof.source,
            millis(answer.took)
        ),
    )
}

fn millis(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1000.0)
}

fn is_coordinator(answer: &Answer) -> bool {
    matches!(answer.proof.source, Hop::Coordinator(_))
}

async fn strict(client: &HttpClient, target: &str) -> Result<Answer, Failure> {
    read(client, target, Freshness::Strict).await
}

async fn verified(client: &HttpClient, target: &str) -> Result<Answer, Failure> {
    read(client, target, Freshness::Verified).await
}

async fn read(client: &HttpClient, target: &str, freshness: Freshness) -> Result<Answer, Failure> {
    let target = target
        .parse()
        .map_err(|error| Failure::new("invalid", format!("{target}: {error}")))?;
    client
        .get(Query {
            freshness,
            ..Query::strict(target)
        })
        .await
}

async fn publish(client: &HttpClient, specs: &[(&str, Spec)]) -> anyhow::Result<Revision> {
    let mut changes = Vec::with_capacity(specs.len());
    for (name, spec) in specs {
        client.put_body(spec.clone(), Syntax::Yaml).await?;
        changes.push(PublishName {
            name: name.parse()?,
            hash: Some(spec.hash()),
            len: spec.len(),
            expect: None,
        });
    }
    let publish = Publish {
        key: None,
        note: "demo".into(),
        changes,
    };
    Ok(client.publish(publish).await?.rev)
}

fn spec(text: &str) -> Spec {
    Spec::new(text.to_owned().into())
}

fn example_text(name: &str) -> &'static str {
    let found = EXAMPLES.iter().find(|(other, _)| *other == name);
    found.map_or("", |(_, text)| text)
}

fn example_spec(name: &str) -> Spec {
    spec(example_text(name))
}

/// Publishes and reads enough that a worker's store has many pages.
async fn archive(coordinator: &HttpClient, workers: [&HttpClient; 2]) -> anyhow::Result<Vec<Spec>> {
    let specs: Vec<_> = (0..ARCHIVED)
        .map(|number| {
            let text = filler(number << 32, ARCHIVED_LEN);
            (format!("archive/part-{number}"), spec(&text))
        })
        .collect();
    let named: Vec<_> = specs
        .iter()
        .map(|(name, spec)| (name.as_str(), spec.clone()))
        .collect();
    publish(coordinator, &named).await?;
    for worker in workers {
        for (name, _) in &specs {
            strict(worker, name).await?;
        }
    }
    Ok(specs.into_iter().map(|(_, spec)| spec).collect())
}

/// About 900 KiB of YAML.
fn large_text() -> String {
    filler(0, 900 << 10)
}

/// YAML of at least `len` bytes whose lines differ, from `first` on.
fn filler(first: u64, len: usize) -> String {
    let mut text = String::from("steps:\n");
    for number in first.. {
        if text.len() >= len {
            break;
        }
        let digest = blake3_hex(number);
        text.push_str(&format!(
            "  - name: part-{number}\n    run: load --part {digest}\n"
        ));
    }
    text
}

fn blake3_hex(number: u64) -> String {
    larder::spec::SpecHash::of(&number.to_be_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_of_the_repository_is_published() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let mut dirs = vec![root.clone()];
        let mut found = Vec::new();
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).expect("a directory") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    dirs.push(path);
                } else if path.extension().is_some_and(|ext| ext == "yaml") {
                    let name = path.strip_prefix(&root).expect("below").with_extension("");
                    found.push(name.to_str().expect("text").to_owned());
                }
            }
        }
        found.sort();
        let mut published: Vec<_> = EXAMPLES
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        published.sort();
        assert_eq!(published, found);
    }

    #[test]
    fn the_large_definition_is_below_the_limit_and_above_the_cut() {
        let len = large_text().len() as u64;
        assert!(len > CUT_AFTER && len <= larder::spec::DEFAULT_MAX_SPEC_LEN);
    }
}
