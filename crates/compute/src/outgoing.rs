//! Control events on their way into a partition's log: one append in flight, in order.

use std::collections::VecDeque;
use std::sync::Arc;

use truthdb_engine::{AppendError, AppendSink, EncodedEvents, Engine};

use crate::command::{Outcome, Reply};
use crate::emit::{Outcomes, RETRY_NS};
use crate::error::ComputeError;
use crate::token::Token;

/// Who is told that an event is stored, and what.
pub(crate) struct Answer {
    pub(crate) reply: Arc<Reply>,
    pub(crate) outcome: Outcome,
}

struct Out {
    events: EncodedEvents,
    answer: Option<Answer>,
    /// It belongs together with those before and after of the same number.
    group: u64,
}

/// See the module's description.
pub(crate) struct Outgoing {
    engine: Engine,
    partition: u32,
    queue: VecDeque<Out>,
    outcomes: Arc<Outcomes>,
    in_flight: Option<u64>,
    next_tag: u64,
    next_group: u64,
    retry_at: u64,
    /// Sequence of the last one that was stored.
    pub(crate) stored: u64,
    /// Who is told once the fold has taken up what is stored at a sequence.
    untold: VecDeque<(u64, Answer)>,
}

impl Outgoing {
    pub(crate) fn new(
        engine: &Engine,
        partition: u32,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Outgoing {
        Outgoing {
            engine: engine.clone(),
            partition,
            queue: VecDeque::new(),
            outcomes: Arc::new(Outcomes::new(wake)),
            in_flight: None,
            next_tag: 0,
            next_group: 0,
            retry_at: 0,
            stored: 0,
            untold: VecDeque::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Queues events that belong together; whoever asked is told by [`Outgoing::tell`] once the last
    /// one is stored.
    pub(crate) fn push(&mut self, events: Vec<EncodedEvents>, mut answer: Option<Answer>) {
        self.next_group += 1;
        let last = events.len();
        for (index, events) in events.into_iter().enumerate() {
            let answer = if index + 1 == last {
                answer.take()
            } else {
                None
            };
            self.queue.push_back(Out {
                events,
                answer,
                group: self.next_group,
            });
        }
    }

    /// Takes outcomes and hands the next event to the writer. Says whether anything happened.
    pub(crate) fn pump(&mut self, now: u64) -> bool {
        let mut any = false;
        for (tag, result) in self.outcomes.take() {
            if self.in_flight != Some(tag) {
                continue;
            }
            any = true;
            self.in_flight = None;
            match result {
                Ok(appended) => self.stored(appended.last_sequence),
                Err(error) => self.failed(error, now),
            }
        }
        any | self.send(now)
    }

    /// When to look again, if a refusal is waited for.
    pub(crate) fn retry_at(&self) -> Option<u64> {
        (!self.queue.is_empty() && self.in_flight.is_none()).then_some(self.retry_at)
    }

    fn send(&mut self, now: u64) -> bool {
        if self.in_flight.is_some() || now < self.retry_at {
            return false;
        }
        let Some(front) = self.queue.front() else {
            return false;
        };
        let prepared = match self
            .engine
            .prepare_own(self.partition, front.events.clone())
        {
            Ok(prepared) => prepared,
            Err(error) => {
                self.failed(error, now);
                return true;
            }
        };
        let tag = self.next_tag;
        self.next_tag += 1;
        let sink = Arc::clone(&self.outcomes) as Arc<dyn AppendSink>;
        match self.engine.append(prepared, sink, tag) {
            Ok(()) => self.in_flight = Some(tag),
            Err((error, _)) => self.failed(error, now),
        }
        true
    }

    fn stored(&mut self, sequence: u64) {
        self.stored = sequence;
        let Some(out) = self.queue.pop_front() else {
            return;
        };
        if let Some(mut answer) = out.answer {
            let token = Token::of(self.partition, sequence);
            match &mut answer.outcome {
                Outcome::Published(published) => published.token = token,
                Outcome::Decided(decided) => decided.token = token,
            }
            self.untold.push_back((sequence, answer));
        }
    }

    /// The fold has taken up, and shows, what is stored up to here: whoever asked for it is told, and
    /// sees it when asking on.
    pub(crate) fn tell(&mut self, through: u64) {
        while self.untold.front().is_some_and(|(at, _)| *at <= through) {
            if let Some((_, answer)) = self.untold.pop_front() {
                answer.reply.complete(Ok(answer.outcome));
            }
        }
    }

    /// Nothing is taken up any more: who waits is told what is known.
    pub(crate) fn finish(&mut self) {
        self.tell(u64::MAX);
        for answer in self.queue.drain(..).filter_map(|out| out.answer) {
            answer.reply.complete(Err(ComputeError::Stopped {
                partition: self.partition,
                reason: "the server is stopping; the command may still be carried out".to_owned(),
            }));
        }
    }

    fn failed(&mut self, error: AppendError, now: u64) {
        if error.is_retryable() {
            self.retry_at = now + RETRY_NS;
            return;
        }
        // Half a publication is none: what belongs to it is dropped with it. Facts that nobody waits
        // for are found missing again, by whoever appended them.
        let Some(group) = self.queue.front().map(|out| out.group) else {
            return;
        };
        tracing::warn!(partition = self.partition, error = %crate::error::chain(&error),
            "a control event could not be appended");
        self.retry_at = now + 100 * RETRY_NS;
        while self.queue.front().is_some_and(|out| out.group == group) {
            if let Some(answer) = self.queue.pop_front().and_then(|out| out.answer) {
                answer
                    .reply
                    .complete(Err(ComputeError::Append(error.clone())));
            }
        }
    }
}
