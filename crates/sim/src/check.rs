//! Reads of all kinds against the model.

use std::ops::ControlFlow;

use truthdb_engine::{
    CURSOR_STREAM_PREFIX, Direction, Filter, ReadError, ReadFrom, ReadPage, ReadRequest,
    RevisionFrom, StreamReadRequest,
};
use truthdb_log::{SCHEMA_PATH, Schema, trim_path};

use crate::model::Partition;
use crate::profile::Class;
use crate::sim::{Sim, Violation, violation};
use crate::work;

impl Sim {
    fn draw_from(&mut self, partition: usize) -> ReadFrom {
        let model = &self.models[partition];
        let last = model.last();
        match self.prng.below(4) {
            0 => ReadFrom::Start,
            1 if last > 0 => {
                let at = model.get(1 + self.prng.below(last)).timestamp_ns;
                ReadFrom::Time((at + self.prng.below(3)).saturating_sub(1))
            }
            _ => ReadFrom::Sequence(self.prng.below(last + 3)),
        }
    }

    /// One page from anywhere, either way, with or without a filter.
    pub(crate) fn check_random_read(&mut self) -> Result<(), Violation> {
        let count = u64::from(self.profile.partitions);
        let partition = usize::try_from(self.draw(count)).expect("partitions are few");
        let request = ReadRequest {
            partition: u32::try_from(partition).expect("partitions are few"),
            from: self.draw_from(partition),
            direction: if self.prng.coin() {
                Direction::Forward
            } else {
                Direction::Backward
            },
            filter: work::filter(&mut self.prng, &self.profile),
            events_max: usize::try_from(1 + self.draw(30)).expect("small"),
            bytes_max: usize::try_from(1_u64 << self.draw(22)).expect("small"),
        };
        let page = self.check_read(partition, &request)?;
        // The page after it, by its place on the disk.
        if let Some(resume) = page.and_then(|page| page.resume) {
            let from = ReadFrom::Resume(resume);
            let next = ReadRequest { from, ..request };
            self.check_read(partition, &next)?;
        }
        Ok(())
    }

    /// Reads a page and compares it. `None`: it failed with an excuse.
    fn check_read(
        &self,
        partition: usize,
        request: &ReadRequest,
    ) -> Result<Option<ReadPage>, Violation> {
        let Some(live) = &self.live else {
            return Ok(None);
        };
        let model = &self.models[partition];
        let fail = |text: String| violation(format!("partition {partition}, {request:?}: {text}"));
        match live.engine.read(request) {
            Ok(page) => match check_page(model, request, &page) {
                Some(text) => fail(text),
                None => Ok(Some(page)),
            },
            Err(ReadError::Trimmed { .. })
                if model.first_sequence > 1
                    && matches!(request.from, ReadFrom::Sequence(s) if s < model.first_sequence) =>
            {
                Ok(None)
            }
            Err(error) if self.excuses_read(partition, &error) => Ok(None),
            Err(error) => fail(error_text(&error)),
        }
    }

    /// One page of a stream, or a cursor.
    pub(crate) fn check_random_stream(&mut self) -> Result<(), Violation> {
        let count = u64::from(self.profile.partitions);
        let partition = usize::try_from(self.draw(count)).expect("partitions are few");
        let model = &self.models[partition];
        let nth = self.prng.below(model.streams.len() as u64 + 1);
        let nth = usize::try_from(nth).expect("streams are few");
        let stream = match model.streams.keys().nth(nth) {
            Some(stream) => stream.clone(),
            None => work::stream(&mut self.prng, &self.profile),
        };
        let length = model.streams.get(&stream).map_or(0, Vec::len) as u64;
        let from = if self.prng.coin() {
            RevisionFrom::Start
        } else {
            RevisionFrom::Revision(self.prng.below(length + 2))
        };
        let forward = self.prng.coin();
        let events_max = usize::try_from(1 + self.draw(12)).expect("small");
        self.check_stream(partition, &stream, from, forward, events_max)
    }

    fn check_stream(
        &self,
        partition: usize,
        stream: &str,
        from: RevisionFrom,
        forward: bool,
        events_max: usize,
    ) -> Result<(), Violation> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        let number = u32::try_from(partition).expect("partitions are few");
        let system = stream.starts_with('$');
        if !system && live.engine.partition_of(stream) != number {
            return Ok(());
        }
        let model = &self.models[partition];
        let none = Vec::new();
        let sequences = model.streams.get(stream).unwrap_or(&none);
        let first = sequences.partition_point(|s| *s < model.first_sequence) as u64;
        let request = StreamReadRequest {
            stream: stream.to_owned(),
            partition: system.then_some(number),
            from,
            direction: if forward {
                Direction::Forward
            } else {
                Direction::Backward
            },
            events_max,
            bytes_max: 1 << 20,
        };
        let fail = |text: String| violation(format!("partition {partition}, {request:?}: {text}"));
        let gone = first == sequences.len() as u64;
        let page = match live.engine.read_stream(&request) {
            Ok(page) => page,
            Err(ReadError::StreamNotFound { .. }) if gone => return Ok(()),
            Err(ReadError::Trimmed { .. })
                if gone || matches!(from, RevisionFrom::Revision(r) if r < first) =>
            {
                return Ok(());
            }
            Err(error) if self.excuses_read(partition, &error) => return Ok(()),
            Err(error) => return fail(error_text(&error)),
        };
        if gone {
            let found = page.event_count();
            return if found == 0 {
                Ok(())
            } else {
                fail(format!("{found} events of a stream that has none"))
            };
        }
        let last = sequences.len() as u64 - 1;
        if page.last_revision != last {
            return fail(format!("ends at {}, not {last}", page.last_revision));
        }
        let mut revision = match (from, forward) {
            (RevisionFrom::Start, true) => first,
            (RevisionFrom::Start, false) => last,
            (RevisionFrom::Revision(revision), true) => revision.max(first),
            (RevisionFrom::Revision(revision), false) => revision.min(last),
        };
        for event in page.events() {
            if event.revision != revision || !(first..=last).contains(&revision) {
                return fail(format!("revision {}, not {revision}", event.revision));
            }
            let index = usize::try_from(revision).expect("a length");
            if event.sequence != sequences[index] {
                return fail(format!("revision {revision} at {}", event.sequence));
            }
            if let Some(text) = model.differs(&event) {
                return fail(text);
            }
            revision = if forward {
                revision + 1
            } else {
                revision.wrapping_sub(1)
            };
        }
        let rest = (first..=last).contains(&revision).then_some(revision);
        if page.next != rest || rest.is_some() && page.event_count() == 0 {
            return fail(format!("goes on at {:?}, not {rest:?}", page.next));
        }
        Ok(())
    }

    /// Everything that the model has, read in order, and all streams and cursors.
    pub(crate) fn check_all(&mut self) -> Result<(), Violation> {
        for partition in 0..self.sides.len() {
            if self.sides[partition].fenced || self.live.is_none() {
                continue;
            }
            self.check_partition(partition)?;
            if self.world.boots() != self.boots {
                return Ok(());
            }
        }
        let healthy = self.damage.is_none() && self.profile.class != Class::Errors;
        if healthy && self.draw(3) == 0 {
            self.check_verify()?;
        }
        Ok(())
    }

    fn check_partition(&mut self, partition: usize) -> Result<(), Violation> {
        let number = u32::try_from(partition).expect("partitions are few");
        let mut request = ReadRequest {
            partition: number,
            from: ReadFrom::Start,
            direction: Direction::Forward,
            filter: Filter::default(),
            events_max: usize::try_from(1 + self.draw(1000)).expect("small"),
            bytes_max: 1 << 20,
        };
        while let Some(page) = self.check_read(partition, &request)? {
            request.from = match (page.next, page.resume) {
                (Some(_), Some(resume)) if !page.at_end => ReadFrom::Resume(resume),
                (Some(next), None) if !page.at_end => ReadFrom::Sequence(next),
                _ => break,
            };
        }
        let streams: Vec<String> = self.models[partition].streams.keys().cloned().collect();
        for stream in streams {
            let forward = self.prng.coin();
            self.check_stream(partition, &stream, RevisionFrom::Start, forward, 100)?;
            if let Some(name) = stream.strip_prefix(CURSOR_STREAM_PREFIX) {
                self.check_cursor(partition, &stream, name)?;
            }
        }
        Ok(())
    }

    fn check_cursor(&self, partition: usize, stream: &str, name: &str) -> Result<(), Violation> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        let model = &self.models[partition];
        let number = u32::try_from(partition).expect("partitions are few");
        let newest = model.streams.get(stream).and_then(|s| s.last()).copied();
        let Some(sequence) = newest.filter(|sequence| *sequence >= model.first_sequence) else {
            return Ok(());
        };
        match live.engine.cursor(number, name) {
            Ok(Some(cursor))
                if cursor.sequence == sequence
                    && cursor.position.to_le_bytes()[..] == model.get(sequence).spec.payload =>
            {
                Ok(())
            }
            Err(error) if self.excuses_read(partition, &error) => Ok(()),
            other => violation(format!(
                "cursor {name} of partition {partition} is {other:?}, stored at {sequence}"
            )),
        }
    }

    fn check_verify(&mut self) -> Result<(), Violation> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        let report = live
            .engine
            .verify(None, true, &mut |_| ControlFlow::Continue(()));
        if self.world.boots() != self.boots {
            return Ok(());
        }
        match report {
            Ok(report) if report.findings.is_empty() => Ok(()),
            Ok(report) => violation(format!(
                "verification finds damage where there is none: {:?}",
                report.findings
            )),
            Err(error) => violation(format!("verification: {}", error_text(&error))),
        }
    }

    /// Copies the database by a backup, opens the copy on another machine, and compares it.
    pub(crate) fn check_backup(&mut self) -> Result<(), Violation> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        if self.damage.is_some() || self.profile.class == Class::Errors {
            return Ok(());
        }
        let excused = |sim: &Sim| sim.world.boots() != sim.boots;
        let Some(session) = live.engine.backup().ok() else {
            return if excused(self) {
                Ok(())
            } else {
                violation("a backup does not begin")
            };
        };
        let copy = truthdb_io::sim::SimWorld::new(self.prng.next_u64());
        let fail = |what: &str| violation(format!("a backup cannot be stored: {what}"));
        if copy
            .write_file(truthdb_log::MANIFEST_PATH, &session.manifest())
            .and_then(|()| copy.write_file(SCHEMA_PATH, &Schema::CURRENT.encode()))
            .is_err()
        {
            return fail("metadata");
        }
        let storage = copy.storage();
        for partition in session.partitions() {
            for dir in ["index", "snapshots"] {
                let path = format!("partition-{:04}/{dir}", partition.partition);
                if truthdb_io::Storage::durable_create_dir(storage.as_ref(), &path).is_err() {
                    return fail(&path);
                }
            }
            let segments = partition.segments.iter().map(|s| (&s.path, s.bytes));
            let heads = partition.heads.iter().map(|run| (&run.path, run.bytes));
            for (path, length) in segments.chain(heads) {
                let mut bytes = Vec::new();
                while (bytes.len() as u64) < length {
                    let offset = bytes.len() as u64;
                    match session.read(path, offset, 1 << 20) {
                        Ok(read) if !read.is_empty() => bytes.extend_from_slice(&read),
                        _ if excused(self) => return Ok(()),
                        other => return violation(format!("{path} at {offset}: {other:?}")),
                    }
                }
                if copy.write_file(path, &bytes).is_err() {
                    return fail(path);
                }
            }
            if let Some(trim) = &partition.trim
                && copy
                    .write_file(&trim_path(partition.partition), trim)
                    .is_err()
            {
                return fail("the trim point");
            }
        }
        if excused(self) {
            return Ok(());
        }
        self.check_copy(&copy)
    }

    fn check_copy(&mut self, copy: &truthdb_io::sim::SimWorld) -> Result<(), Violation> {
        let opened =
            truthdb_engine::Engine::open_stepped(copy.world(), self.profile.config.clone());
        let (engine, stepper) = match opened {
            Ok(opened) => opened,
            Err(error) => return violation(format!("a restored backup does not open: {error}")),
        };
        for (number, model) in (0u32..).zip(&self.models) {
            let committed = engine.committed(number);
            if committed != model.last() {
                let report = &engine.report().partitions[number as usize];
                return violation(format!(
                    "a restored backup has {committed} of {} events: {report:?}",
                    model.last()
                ));
            }
        }
        let own = self.live.replace(crate::sim::Live { engine, stepper });
        let result =
            (0..self.sides.len()).try_for_each(|partition| self.check_partition(partition));
        self.live = own;
        result.map_err(|Violation(text)| Violation(format!("a restored backup: {text}")))
    }
}

pub(crate) fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// What is wrong with a page, if anything.
fn check_page(model: &Partition, request: &ReadRequest, page: &ReadPage) -> Option<String> {
    let (first, last) = (model.first_sequence, model.last());
    let forward = request.direction == Direction::Forward;
    if page.committed != last {
        return Some(format!(
            "committed {}, acknowledged is {last}",
            page.committed
        ));
    }
    let from = match request.from {
        ReadFrom::Start if forward => first,
        ReadFrom::Start => last,
        ReadFrom::Sequence(sequence) if forward => sequence.max(1),
        ReadFrom::Sequence(sequence) => sequence.min(last),
        ReadFrom::Resume(resume) if forward => resume.sequence(),
        ReadFrom::Resume(resume) => resume.sequence().min(last),
        ReadFrom::Time(time) if forward => {
            let mut found = first..=last;
            found
                .find(|s| model.get(*s).timestamp_ns >= time)
                .unwrap_or(last + 1)
        }
        ReadFrom::Time(time) => {
            let mut found = (first..=last).rev();
            let found = found.find(|s| model.get(*s).timestamp_ns <= time);
            found.unwrap_or(first - 1)
        }
    };
    let events = page.events();
    if events.len() > request.events_max {
        return Some(format!("{} events", events.len()));
    }
    let stop = match (forward, page.next) {
        (true, Some(next)) => next,
        (true, None) => return Some("a forward page always says where to go on".to_owned()),
        (false, next) => next.map_or(first, |next| next + 1),
    };
    let expected: Vec<u64> = if forward {
        let range = from.max(first)..stop.min(last + 1);
        range
            .filter(|s| model.passes(&request.filter, *s))
            .collect()
    } else {
        let range = (stop..from.min(last) + 1).rev();
        range
            .filter(|s| model.passes(&request.filter, *s))
            .collect()
    };
    let found: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    if found != expected {
        let same = found.iter().zip(&expected).take_while(|(f, e)| f == e);
        let at = same.count();
        return Some(format!(
            "{} events, not {}; event {at} is {:?}, not {:?} (from {from}, next {:?})",
            found.len(),
            expected.len(),
            found.get(at),
            expected.get(at),
            page.next
        ));
    }
    let progress = if forward {
        stop > from || from > last
    } else {
        stop <= from || from < first
    };
    if !progress
        || page.at_end
            != if forward {
                stop > last
            } else {
                page.next.is_none()
            }
    {
        return Some(format!("next {:?}, at the end: {}", page.next, page.at_end));
    }
    events.iter().find_map(|event| model.differs(event))
}
