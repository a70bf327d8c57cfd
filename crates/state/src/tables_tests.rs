//! Tables against a map: every operation, views retained at random points, memory, differences.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::tree::{LEAF_BYTES_MAX, Node, Tree};

const TABLES: u32 = 3;

type Model = BTreeMap<(u32, Vec<u8>), Vec<u8>>;
type Rows = Vec<(Vec<u8>, Vec<u8>)>;

#[derive(Debug, Clone)]
enum Op {
    Set(u32, Vec<u8>, Vec<u8>),
    Delete(u32, Vec<u8>),
    DeleteRange(u32, Vec<u8>, Option<Vec<u8>>),
    Check(u32, Vec<u8>, Option<Vec<u8>>, u64),
    Commit,
    Rollback,
    View,
    DropView,
}

/// Few distinct keys, so that operations meet; some share long prefixes, some are empty.
fn keys() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => (0_u32..400).prop_map(|n| format!("airport/{n:04}").into_bytes()),
        2 => prop::collection::vec(0_u8..4, 0..6),
        1 => (0_u32..20).prop_map(|n| [vec![b'x'; 500], n.to_le_bytes().to_vec()].concat()),
    ]
}

fn values() -> impl Strategy<Value = Vec<u8>> {
    let small = (any::<u8>(), 0_usize..80).prop_map(|(byte, bytes)| vec![byte; bytes]);
    let large = (any::<u8>(), 0_usize..9000).prop_map(|(byte, bytes)| vec![byte; bytes]);
    prop_oneof![20 => small, 1 => large]
}

fn ops() -> impl Strategy<Value = Op> {
    let table = 0..TABLES;
    let range = || (0..TABLES, keys(), prop::option::of(keys()));
    prop_oneof![
        40 => (table.clone(), keys(), values()).prop_map(|(t, k, v)| Op::Set(t, k, v)),
        20 => (table, keys()).prop_map(|(t, k)| Op::Delete(t, k)),
        1 => range().prop_map(|(t, start, end)| Op::DeleteRange(t, start, end)),
        8 => (range(), 0_u64..50).prop_map(|((t, s, e), limit)| Op::Check(t, s, e, limit)),
        6 => Just(Op::Commit),
        1 => Just(Op::Rollback),
        3 => Just(Op::View),
        2 => Just(Op::DropView),
    ]
}

fn in_range(model: &Model, table: u32, start: &[u8], end: Option<&[u8]>) -> Rows {
    let row = |((t, key), value): (&(u32, Vec<u8>), &Vec<u8>)| {
        let inside = *t == table && &key[..] >= start && end.is_none_or(|end| &key[..] < end);
        inside.then(|| (key.clone(), value.clone()))
    };
    model.iter().filter_map(row).collect()
}

fn fingerprint(model: &Model) -> Fingerprint {
    let mut sum = Fingerprint::EMPTY;
    for ((table, key), value) in model {
        sum.add(Fingerprint::of_row(*table, key, value));
    }
    sum
}

type Scan<'a> = &'a dyn Fn(u32, &[u8], Option<&[u8]>, u64, bool, Sink<'_>) -> bool;

/// Rows of a scan with a limit, and whether there are more.
fn scan(
    scan: Scan<'_>,
    (table, start, end): (u32, &[u8], Option<&[u8]>),
    limit: u64,
    reverse: bool,
) -> (Rows, bool) {
    let mut rows = Vec::new();
    let more = scan(table, start, end, limit, reverse, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        true
    });
    (rows, more)
}

fn check_scan(by: Scan<'_>, model: &Model, range: (u32, &[u8], Option<&[u8]>), limit: u64) {
    let mut expected = in_range(model, range.0, range.1, range.2);
    for reverse in [false, true] {
        let (rows, more) = scan(by, range, limit, reverse);
        let taken = expected.len().min(usize::try_from(limit).unwrap());
        assert_eq!(rows, expected[..taken]);
        assert_eq!(more, taken < expected.len());
        expected.reverse();
    }
}

fn check_view(view: &View, model: &Model) {
    for table in 0..TABLES {
        check_scan(
            &|t, s, e, l, r, sink| view.scan(t, s, e, l, r, sink),
            model,
            (table, b"", None),
            1 << 40,
        );
    }
    assert_eq!(view.fingerprint(), fingerprint(model));
    assert_eq!(view.rows(), model.len() as u64);
    let bytes: usize = model.iter().map(|((_, k), v)| k.len() + v.len()).sum();
    assert_eq!(view.bytes(), bytes as u64);
}

/// What the tree says about its memory is what its nodes have; no node is empty or too large.
pub(crate) fn check_tree(tree: &Tree) {
    fn memory(node: &Arc<Node>, depth: usize, depths: &mut Vec<usize>) -> usize {
        let own = size_of::<Node>() + 16;
        match &**node {
            Node::Leaf(rows) => {
                assert!(rows.len() > 0);
                // Rows up to 9,000 bytes: a leaf is at most two of them over its limit.
                assert!(rows.len() == 1 || rows.used() < LEAF_BYTES_MAX + 2 * 9600);
                depths.push(depth);
                own + rows.memory()
            }
            Node::Inner(inner) => {
                assert!((1..=64).contains(&inner.children.len()));
                let below: usize = inner
                    .children
                    .iter()
                    .map(|child| memory(child, depth + 1, depths))
                    .sum();
                own + inner.own_memory() + below
            }
        }
    }
    let mut depths = Vec::new();
    let expected = tree.root().map_or(0, |root| memory(root, 0, &mut depths));
    assert_eq!(tree.memory(), expected);
    depths.dedup();
    assert!(depths.len() <= 1, "leaves at depths {depths:?}");
}

struct World {
    tables: Tables,
    committed: Model,
    running: Model,
    views: Vec<(View, Model)>,
}

impl World {
    fn run(&mut self, op: Op) {
        match op {
            Op::Set(table, key, value) => {
                self.tables.set(table, &key, &value).unwrap();
                self.running.insert((table, key), value);
            }
            Op::Delete(table, key) => {
                let deleted = self.tables.delete(table, &key).unwrap();
                assert_eq!(deleted, self.running.remove(&(table, key)).is_some());
            }
            Op::DeleteRange(table, start, end) => {
                let gone = in_range(&self.running, table, &start, end.as_deref());
                let deleted = self.tables.delete_range(table, &start, end.as_deref());
                assert_eq!(deleted, Ok(gone.len() as u64));
                for (key, _) in gone {
                    self.running.remove(&(table, key));
                }
            }
            Op::Check(table, start, end, limit) => {
                let by: Scan<'_> = &|t, s, e, l, r, sink| self.tables.scan(t, s, e, l, r, sink);
                check_scan(by, &self.running, (table, &start, end.as_deref()), limit);
                let value = self.tables.get(table, &start);
                let expected = self.running.get(&(table, start.clone()));
                assert_eq!(value, expected.map(Vec::as_slice));
            }
            Op::Commit => self.commit(),
            Op::Rollback => {
                self.tables.rollback();
                self.tables.begin();
                self.running = self.committed.clone();
            }
            Op::View => self
                .views
                .push((self.tables.view(), self.committed.clone())),
            Op::DropView => drop(self.views.pop()),
        }
    }

    fn commit(&mut self) {
        let before = self.tables.view();
        let changes = self.tables.commit();
        let after = self.tables.view();
        assert_eq!(before.diff(&after).unwrap(), changes);
        let mut by_apply = Tables::from_view(&before);
        by_apply.apply(&changes).unwrap();
        check_view(&by_apply.view(), &self.running);
        let undo = after.diff(&before).unwrap();
        by_apply.apply(&undo).unwrap();
        check_view(&by_apply.view(), &self.committed);
        self.committed = self.running.clone();
        check_view(&after, &self.committed);
        after.trees().iter().for_each(check_tree);
        self.tables.begin();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn tables_behave_like_maps_and_views_never_change(
        ops in prop::collection::vec(ops(), 1..400),
    ) {
        let mut world = World {
            tables: Tables::new(TABLES),
            committed: Model::new(),
            running: Model::new(),
            views: Vec::new(),
        };
        world.tables.begin();
        for op in ops {
            world.run(op);
        }
        world.commit();
        for (view, model) in &world.views {
            check_view(view, model);
            for (other, expected) in &world.views {
                let mut tables = Tables::from_view(view);
                tables.apply(&view.diff(other).unwrap()).unwrap();
                prop_assert_eq!(tables.fingerprint(), fingerprint(expected));
            }
        }
    }

    #[test]
    fn large_tables_are_diffed_split_and_merged(
        seed: u64,
        deletes in 0_u64..20_000,
    ) {
        // A fixed walk over a space of keys, so that trees of several levels grow and shrink.
        let mut state = seed | 1;
        let mut draw = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let mut tables = Tables::new(1);
        let mut model = Model::new();
        tables.begin();
        for _ in 0..20_000 {
            let (key, value) = (draw(1 << 20).to_le_bytes().to_vec(), draw(1 << 30).to_le_bytes());
            tables.set(0, &key, &value).unwrap();
            model.insert((0, key), value.to_vec());
        }
        tables.commit();
        let view = tables.view();
        let full = model.clone();
        tables.begin();
        let victims: Vec<_> = model.keys().take(usize::try_from(deletes).unwrap()).cloned().collect();
        for key in victims {
            prop_assert!(tables.delete(0, &key.1).unwrap());
            model.remove(&key);
        }
        let changes = tables.commit();
        prop_assert_eq!(view.diff(&tables.view()).unwrap(), changes);
        tables.view().trees().iter().for_each(check_tree);
        prop_assert_eq!(tables.fingerprint(), fingerprint(&model));
        prop_assert_eq!(view.fingerprint(), fingerprint(&full));
        prop_assert_eq!(view.rows(), full.len() as u64);
    }
}

fn numbered(rows: u64) -> Tables {
    let mut tables = Tables::new(1);
    tables.begin();
    for n in 0..rows {
        let key = n.to_le_bytes().map(u8::reverse_bits);
        tables.set(0, &key, &n.to_le_bytes()).unwrap();
    }
    tables.commit();
    tables
}

#[test]
fn a_diff_costs_what_differs_where_nodes_are_shared() {
    let mut tables = numbered(200_000);
    let before = tables.view();
    let copied = tables.copied_bytes();
    tables.begin();
    for n in [5_u64, 70_000, 199_999] {
        let key = n.to_le_bytes().map(u8::reverse_bits);
        tables.set(0, &key, b"other").unwrap();
    }
    assert_eq!(tables.commit().len(), 3);
    let after = tables.view();
    assert_eq!(before.diff(&after).unwrap().len(), 3);
    // Three paths of three nodes each were copied; what is shared is not compared, see the walk.
    let copied = tables.copied_bytes() - copied;
    assert!(copied < 3 * 3 * 8192, "{copied} bytes copied");
    let (old, new) = (&before.trees()[0], &after.trees()[0]);
    let steps = crate::view::compared_rows(old, new);
    assert!(steps < 3 * 300, "{steps} of 200,000 rows compared");
}

#[test]
fn without_a_retained_view_nothing_is_copied() {
    let mut tables = numbered(50_000);
    let copied = tables.copied_bytes();
    for n in 0..1000_u64 {
        tables.begin();
        let key = n.to_le_bytes().map(u8::reverse_bits);
        tables.set(0, &key, b"other").unwrap();
        tables.commit();
        drop(tables.view());
    }
    assert_eq!(tables.copied_bytes(), copied);
}

#[test]
fn keys_in_order_fill_their_leaves() {
    for descending in [false, true] {
        let mut tables = Tables::new(1);
        tables.begin();
        for n in 0..100_000_u32 {
            let n = if descending { 100_000 - n } else { n };
            let key = n.to_le_bytes();
            let key = [key[3], key[2], key[1], key[0]];
            tables.set(0, &key, &[7; 28]).unwrap();
            if n % 1000 == 0 {
                tables.commit();
                tables.begin();
            }
        }
        tables.commit();
        let (memory, bytes) = (tables.memory_bytes(), tables.bytes());
        // 16 bytes of slot to 32 of row, and little else.
        assert!(memory < bytes * 2, "{memory} bytes of memory for {bytes}");
    }
}

#[test]
fn setting_the_value_that_is_there_is_no_change() {
    let mut tables = numbered(100);
    let view = tables.view();
    tables.begin();
    tables.set(0, &[0; 8], &[0; 8]).unwrap();
    tables.set(0, b"new", b"row").unwrap();
    tables.delete(0, b"new").unwrap();
    tables.delete(0, b"never there").unwrap();
    assert!(tables.commit().is_empty());
    assert_eq!(tables.fingerprint(), view.fingerprint());
}

#[test]
fn a_sink_that_does_not_take_a_row_ends_the_scan() {
    let mut tables = numbered(100);
    for pending in [false, true] {
        if pending {
            tables.begin();
            tables.set(0, b"zzz", b"").unwrap();
        }
        let mut told = 0;
        let more = tables.scan(0, b"", None, 50, false, &mut |_, _| {
            told += 1;
            told < 10
        });
        assert!(more && told == 10);
    }
}

#[test]
fn limits_are_refused_by_name_and_change_nothing() {
    let mut tables = Tables::new(2);
    tables.begin();
    tables
        .set(1, &[1; KEY_BYTES_MAX], &vec![2; VALUE_BYTES_MAX])
        .unwrap();
    let too_long = tables.set(1, &[1; KEY_BYTES_MAX + 1], b"");
    assert_eq!(
        too_long,
        Err(TableError::KeyTooLong {
            bytes: KEY_BYTES_MAX + 1
        })
    );
    let too_long = tables.set(1, b"k", &vec![2; VALUE_BYTES_MAX + 1]);
    assert!(matches!(too_long, Err(TableError::ValueTooLong { .. })));
    let unknown = tables.set(2, b"k", b"v").unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "there is no table 2: the module declares 2"
    );
    assert!(tables.delete(7, b"k").is_err());
    assert!(tables.delete_range(7, b"", None).is_err());
    assert_eq!(tables.get(2, b"k"), None);
    assert!(!tables.scan(u32::MAX, b"", None, 1, false, &mut |_, _| true));
    assert_eq!(
        tables.pending_bytes(),
        (KEY_BYTES_MAX + VALUE_BYTES_MAX + 1) as u64
    );
    let changes = tables.commit();
    assert_eq!((changes.len(), tables.pending_bytes()), (1, 0));
    let other = Tables::new(1).apply(&changes);
    assert!(matches!(
        other,
        Err(TableError::UnknownTable { table: 1, .. })
    ));
}

#[test]
fn views_are_read_by_other_threads_while_the_writer_goes_on() {
    let mut tables = numbered(10_000);
    let view = tables.view();
    let expected = view.fingerprint();
    let reader = std::thread::spawn(move || {
        let mut sum = Fingerprint::EMPTY;
        for _ in 0..20 {
            sum = Fingerprint::EMPTY;
            view.scan(0, b"", None, u64::MAX, false, &mut |key, value| {
                sum.add(Fingerprint::of_row(0, key, value));
                true
            });
        }
        sum
    });
    for n in 0..10_000_u64 {
        tables.begin();
        let key = n.to_le_bytes().map(u8::reverse_bits);
        tables.delete(0, &key).unwrap();
        tables.commit();
    }
    assert_eq!(reader.join().unwrap(), expected);
    assert_eq!(tables.fingerprint(), Fingerprint::EMPTY);
    assert_eq!(
        (tables.rows(), tables.bytes(), tables.memory_bytes()),
        (0, 0, 0)
    );
}
