//! Measures runs of stream heads at size: `cargo run --release -p truthdb-log --example heads_scale
//! -- [streams] [directory]`.
//!
//! Writes four runs of a quarter of the streams each, merges them, and looks streams up, present and absent.

use std::sync::Arc;

use truthdb_io::{Backend, FileStorage, Storage};
use truthdb_log::{
    HeadRunWriter, HeadRuns, HeadsIdentity, KeyHasher, KeySeed, SealedSegments, StreamHead,
    StreamKey,
};

const LOOKUPS: u64 = 20_000;

#[expect(clippy::print_stdout, reason = "a measuring tool")]
#[expect(
    clippy::disallowed_methods,
    reason = "a measuring tool reads the clock"
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let streams: u64 = arguments
        .next()
        .map_or(Ok(5_000_000), |text| text.parse())?;
    let directory = arguments.next().unwrap_or_else(|| "heads-scale".to_owned());
    std::fs::create_dir_all(&directory)?;
    let storage: Arc<dyn Storage> =
        Arc::new(FileStorage::open(directory.as_ref(), Backend::Blocking)?);
    storage.durable_create_dir("index")?;
    let keys = KeyHasher::new(KeySeed([1; 16]));
    let key = |n: u64| keys.stream(format!("stream-{n}").as_bytes());
    let identity = HeadsIdentity {
        database_id: [2; 16],
        partition: 0,
        key_check: keys.seed().check(),
    };
    let now = std::time::Instant::now;

    let start = now();
    for segment in 1..=4u32 {
        let mut own: Vec<StreamKey> = (0..streams)
            .filter(|n| n % 4 == u64::from(segment - 1))
            .map(key)
            .collect();
        own.sort_unstable();
        let mut writer =
            HeadRunWriter::create(&storage, "index", &identity, segment, segment, &[0; 32])?;
        for (i, key) in (1..).zip(own) {
            writer.push(
                key,
                StreamHead {
                    next_revision: 1,
                    last_sequence: i,
                },
            )?;
        }
        writer.finish()?;
    }
    println!("write 4 runs      {:>8.2} s", start.elapsed().as_secs_f64());

    let chain_of = |_: u32| Some([0; 32]);
    let sealed = SealedSegments {
        first: 1,
        last: 4,
        chain_of: &chain_of,
    };
    let (mut runs, _) = HeadRuns::open(&storage, "index", identity, &sealed)?;
    let start = now();
    runs.merge_once()?;
    println!("merge them        {:>8.2} s", start.elapsed().as_secs_f64());
    drop(runs);

    let start = now();
    let (runs, _) = HeadRuns::open(&storage, "index", identity, &sealed)?;
    println!(
        "open              {:>8.2} ms",
        start.elapsed().as_secs_f64() * 1e3
    );
    let bits = runs.memory_bytes() as f64 * 8.0 / streams as f64;
    println!(
        "memory            {:>8.2} MB, {bits:.2} bits a stream",
        runs.memory_bytes() as f64 / 1e6
    );

    let present: Vec<StreamKey> = (0..LOOKUPS).map(|n| key(n * (streams / LOOKUPS))).collect();
    let absent: Vec<StreamKey> = (0..LOOKUPS * 50).map(|n| key(streams + n)).collect();
    for (name, keys, expected) in [("present", &present, true), ("absent", &absent, false)] {
        let start = now();
        for key in keys {
            assert_eq!(runs.get(*key)?.is_some(), expected);
        }
        let each = start.elapsed().as_secs_f64() * 1e6 / keys.len() as f64;
        println!("lookup, {name:<9} {each:>8.2} us");
    }
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}
