//! What the semantics id stands for: results that must not change while it stays the same.
//!
//! If a test here fails, modules compute something else than they did, or stop elsewhere. Then databases hold states
//! that this program would not make: give it another semantics id (the flags in `host.rs`, or the contract's version),
//! which makes every state again and compares it, and pin the new results beside the new id.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail the test")]

use std::sync::Arc;

use truthdb_guests::raw_reducer;
use truthdb_module::{
    ColumnEvent, EventColumns, Halt, Host, HostConfig, InstanceContext, Limits, MapTables,
    Processed, WasiProfile,
};

/// The id under which the results below were pinned.
const ID: &str = "a5db1a26ed606f64a13cc60de13cef7824ad89cf6378904045420254be66f00b";

fn host() -> Host {
    Host::new(HostConfig {
        fold_instances_max: 2,
        query_instances_max: 1,
        ..HostConfig::default()
    })
    .unwrap()
}

fn run(process: &str, rest: &str) -> Result<Processed, Halt> {
    let component = wat::parse_str(raw_reducer(process, rest)).unwrap();
    let module = host()
        .compile(&component, &Limits::default(), WasiProfile::None)
        .unwrap();
    let mut columns = EventColumns::default();
    columns.push(&ColumnEvent {
        sequence: 1,
        time: 1,
        revision: 0,
        kind: 0,
        stream: "s",
        event_type: "t",
        id: [0; 16],
        metadata: b"",
        payload: b"payload",
    });
    let context = InstanceContext {
        seed: [1; 32],
        sequence: 0,
        time: 0,
    };
    let mut instance = module.instantiate(&context).unwrap();
    let (_, result) = instance.process(Box::new(MapTables::default()), &Arc::new(columns));
    result
}

#[test]
fn the_results_behind_the_semantics_id_are_pinned() {
    let id = blake3::Hash::from_bytes(host().semantics_id(&Limits::default()));
    assert_eq!(
        id.to_hex().as_str(),
        ID,
        "pin the results again under the new id"
    );

    // Prices: of a call, of a loop, of division, memory, calls, bulk operations.
    let nothing = run("", "").unwrap().fuel;
    let work = run(
        "(local.set 0 (i32.const 1000))
         (loop $again
           (i64.store (i32.const 2048) (i64.div_u (i64.const 1000003) (i64.extend_i32_u (local.get 0))))
           (drop (call $f (f64.load (i32.const 2048))))
           (memory.fill (i32.const 4096) (i32.const 7) (i32.const 64))
           (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))",
        "(func $f (param f64) (result f64) (f64.sqrt (f64.mul (local.get 0) (f64.const 3))))",
    )
    .unwrap()
    .fuel;
    assert_eq!((nothing, work), (64, 87_066), "fuel");
}

#[test]
fn a_nan_has_one_form() {
    // The processor's own has its sign set on some machines and not on others.
    let is_canonical = |value: &str, ty: &str, bits: &str| {
        let zero = format!("(global $zero (mut {ty}) ({ty}.const 0))");
        let int = ty.replace('f', "i");
        let check = format!(
            "(if ({int}.ne ({int}.reinterpret_{ty} {value}) ({int}.const {bits})) (then (unreachable)))"
        );
        run(&check, &zero).unwrap();
    };
    for (ty, bits) in [("f32", "0x7fc00000"), ("f64", "0x7ff8000000000000")] {
        let zero = "(global.get $zero)";
        is_canonical(&format!("({ty}.div {zero} {zero})"), ty, bits);
        is_canonical(
            &format!("({ty}.sqrt ({ty}.sub {zero} ({ty}.const 1)))"),
            ty,
            bits,
        );
        let negative = format!("({ty}.neg ({ty}.div {zero} {zero}))");
        is_canonical(&format!("({ty}.add {negative} {zero})"), ty, bits);
    }
}

#[test]
fn what_differs_between_machines_is_no_part_of_a_module() {
    let refused = |process: &str, rest: &str| {
        let component = wat::parse_str(raw_reducer(process, rest)).unwrap();
        let refused = host().compile(&component, &Limits::default(), WasiProfile::None);
        assert!(refused.is_err(), "{process} {rest}");
    };
    let vector = "(v128.const i32x4 1 2 3 4)";
    refused(
        &format!("(drop (i8x16.relaxed_swizzle {vector} {vector}))"),
        "",
    );
    refused("", "(memory $shared 1 1 shared)");
    refused("(drop (i32.atomic.load (i32.const 64)))", "");
    refused("", "(memory $wide i64 1)");
}
