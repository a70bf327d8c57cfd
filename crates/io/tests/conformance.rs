//! What every storage must do, asked of each of them.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the suite is test code throughout"
)]

mod suite;

use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use truthdb_io::{Backend, FileStorage, Storage};

/// A directory on the file system of the build, which is a real one (tmpfs lacks `O_DIRECT` on some
/// kernels).
fn directory() -> TempDir {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    TempDir::new_in(target).unwrap()
}

fn file_storage(backend: Backend) -> impl Fn() -> (Arc<dyn Storage>, Box<dyn std::any::Any>) {
    move || {
        let dir = directory();
        let storage = FileStorage::open(dir.path(), backend).unwrap();
        (Arc::new(storage), Box::new(dir))
    }
}

#[test]
fn blocking_storage_conforms() {
    let make = file_storage(Backend::Blocking);
    assert_eq!(make().0.backend(), "blocking");
    suite::run(&make);
    suite::run_wakes_between_threads(&make);
}

#[test]
fn io_uring_storage_conforms_where_the_kernel_allows_it() {
    let dir = directory();
    let storage = FileStorage::open(dir.path(), Backend::Auto).unwrap();
    if let Some(reason) = storage.fallback_reason() {
        println!("io_uring is not available here: {reason}");
        assert_eq!(storage.backend(), "blocking");
        assert!(FileStorage::open(dir.path(), Backend::Uring).is_err());
        return;
    }
    let make = file_storage(Backend::Uring);
    assert_eq!(make().0.backend(), "io_uring");
    suite::run(&make);
    suite::run_wakes_between_threads(&make);
}

#[test]
fn root_is_created_durably_on_demand() {
    let dir = directory();
    let storage = FileStorage::open(&dir.path().join("a/b"), Backend::Auto).unwrap();
    assert_eq!(
        storage.list("").unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
    storage.durable_create_dir("").unwrap();
    assert_eq!(storage.list("").unwrap(), []);
    assert!(storage.root().is_dir());
}

#[test]
fn files_are_opened_direct_on_a_file_system_that_allows_it() {
    let dir = directory();
    let storage = FileStorage::open(dir.path(), Backend::Auto).unwrap();
    storage
        .open("file", truthdb_io::OpenMode::CreateNew)
        .unwrap();
    let direct = storage.direct();
    println!("direct: {direct}");
    if !direct {
        // The refusal is remembered, and the file is there all the same.
        assert_eq!(storage.list("").unwrap().len(), 1);
    }
}

#[test]
fn an_io_uring_queue_may_be_made_on_one_thread_and_used_on_another() {
    let dir = directory();
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::open(dir.path(), Backend::Auto).unwrap());
    let file = storage
        .open("file", truthdb_io::OpenMode::CreateNew)
        .unwrap();
    let mut queue = storage.queue(4).unwrap();
    let done = std::thread::spawn(move || {
        queue.sync(&file, 9);
        suite::finish(queue.as_mut(), 1)
    });
    assert_eq!(done.join().unwrap()[0].tag, 9);
}

/// A refused write must not leave an operation behind that the drop of the queue would wait for.
#[test]
fn a_write_of_bytes_that_are_not_frozen_is_refused_before_it_is_queued() {
    let dir = directory();
    for backend in [Backend::Auto, Backend::Blocking] {
        let storage = FileStorage::open(dir.path(), backend).unwrap();
        let path = format!("{backend:?}");
        let file = storage
            .open(&path, truthdb_io::OpenMode::CreateNew)
            .unwrap();
        let mut queue = storage.queue(1).unwrap();
        let mut writer = truthdb_io::ChunkWriter::new(truthdb_io::BLOCK_BYTES);
        writer.zero_fill_to(truthdb_io::BLOCK_BYTES);
        let chunk = Arc::clone(writer.chunk());
        let bytes = writer.len();
        let source = truthdb_io::WriteSource {
            chunk,
            start: 0,
            bytes,
        };
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            queue.write(&file, source, 0, true, 1);
        }));
        assert!(refused.is_err());
        assert_eq!(queue.in_flight(), 0);
    }
}
