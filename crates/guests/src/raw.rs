//! Guests written by hand in the text format: for faults that a compiler would guard against.

/// A reducer (as text of a component) named `raw` that wants all events. `process` is the body of the
/// core function that gets a batch; it must leave nothing on the stack. `rest` is more of the core
/// module: functions, tables, globals.
///
/// Memory: the manifest is at 64, the answer "ok" at 192, lists of the host from 1024 on.
pub fn raw_reducer(process: &str, rest: &str) -> String {
    format!(
        r#"(component
  (import "truthdb:module/types@0.1.0" (instance $types
    (type $kind-def (enum "validator" "reducer" "processor" "query"))
    (export "kind" (type $kind (eq $kind-def)))
    (type $table-def (record (field "name" string) (field "version" u32) (field "module" string)))
    (export "table-decl" (type $table (eq $table-def)))
    (type $subscription-def (record (field "stream" string) (field "event-type" string)))
    (export "subscription" (type $subscription (eq $subscription-def)))
    (type $manifest-def (record
      (field "name" string) (field "version" string) (field "abi" u32) (field "kind" $kind)
      (field "subscriptions" (list $subscription)) (field "tables" (list $table))))
    (export "manifest" (type $manifest (eq $manifest-def)))
    (type $batch-def (record
      (field "sequences" (list u64)) (field "times" (list u64)) (field "revisions" (list u64))
      (field "kinds" (list u32)) (field "ends" (list u32)) (field "data" (list u8))))
    (export "event-batch" (type $batch (eq $batch-def)))))
  (alias export $types "manifest" (type $manifest))
  (alias export $types "event-batch" (type $batch))
  (core module $core
    (memory (export "memory") 2)
    (data (i32.const 16) "raw*")
    (data (i32.const 64)
      "\10\00\00\00\03\00\00\00" "\10\00\00\00\00\00\00\00" "\01\00\00\00" "\01\00\00\00"
      "\80\00\00\00\01\00\00\00" "\00\00\00\00\00\00\00\00")
    (data (i32.const 128) "\13\00\00\00\01\00\00\00\13\00\00\00\01\00\00\00")
    (global $top (mut i32) (i32.const 1024))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.get $top)
      (global.set $top (i32.and
        (i32.add (i32.add (global.get $top) (local.get 3)) (i32.const 7))
        (i32.const -8))))
    (func (export "describe") (result i32) (i32.const 64))
    (func (export "process")
      (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      (global.set $top (i32.const 1024))
      {process}
      (i32.const 192))
    (func (export "migrate")
      (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      (i32.const 192))
    {rest})
  (core instance $i (instantiate $core))
  (func $describe (result $manifest)
    (canon lift (core func $i "describe") (memory $i "memory")))
  (func $process (param "batch" $batch) (result (result (error string)))
    (canon lift (core func $i "process") (memory $i "memory") (realloc (func $i "realloc"))))
  (func $migrate (param "previous" $manifest) (result (result (error string)))
    (canon lift (core func $i "migrate") (memory $i "memory") (realloc (func $i "realloc"))))
  (export "describe" (func $describe))
  (export "process" (func $process))
  (export "migrate" (func $migrate)))"#
    )
}

/// A fault that a guest commits in `process`.
#[derive(Debug, Clone)]
pub struct RawFault {
    /// A name for reports.
    pub name: &'static str,
    /// The guest, as text.
    pub text: String,
    /// A part of the message that the host gives.
    pub message: &'static str,
}

/// Guests that each commit one fault when they get a batch.
pub fn raw_faults() -> Vec<RawFault> {
    let fault = |name, process: &str, rest: &str, message| RawFault {
        name,
        text: raw_reducer(process, rest),
        message,
    };
    vec![
        fault("none", "", "", "ok"),
        fault(
            "division by zero",
            "(drop (i32.div_u (i32.const 1) (i32.const 0)))",
            "",
            "divided by zero",
        ),
        fault(
            "division overflow",
            "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))",
            "",
            "integer overflowed",
        ),
        fault(
            "conversion of NaN",
            "(drop (i32.trunc_f64_s (f64.const nan)))",
            "",
            "no integer value",
        ),
        fault("unreachable", "(unreachable)", "", "`unreachable`"),
        fault("endless loop", "(loop (br 0))", "", "used up its fuel"),
        fault(
            "endless recursion",
            "(drop (call $down (i64.const 1)))",
            "(func $down (param i64) (result i64)
               (i64.add (call $down (i64.add (local.get 0) (i64.const 1))) (local.get 0)))",
            "nested too deeply",
        ),
        fault(
            "store far outside",
            "(i32.store (i32.const 0xf0000000) (i32.const 1))",
            "",
            "outside of its memory",
        ),
        fault(
            "load across the end",
            "(drop (i64.load (i32.const 0x1fffc)))",
            "",
            "outside of its memory",
        ),
        fault(
            "growth beyond the limit",
            "(drop (memory.grow (i32.const 1024)))",
            "",
            "memory_bytes is",
        ),
        fault(
            "growth beyond everything",
            "(drop (memory.grow (i32.const 65535)))",
            "",
            "memory_bytes is",
        ),
        fault(
            "call outside of the table",
            "(call_indirect (type $nothing) (i32.const 5))",
            "(type $nothing (func)) (table 1 funcref)",
            "outside of its table",
        ),
        fault(
            "call of nothing",
            "(call_indirect (type $nothing) (i32.const 0))",
            "(type $nothing (func)) (table 1 funcref)",
            "called nothing",
        ),
        fault(
            "answer outside of memory",
            "(return (i32.const 0x7ffffff0))",
            "",
            "`process`",
        ),
        fault(
            "answer of no variant",
            "(i32.store8 (i32.const 192) (i32.const 7))",
            "",
            "`process`",
        ),
        fault(
            "text that is not UTF-8",
            "(i32.store8 (i32.const 192) (i32.const 1))
             (i32.store (i32.const 196) (i32.const 208))
             (i32.store (i32.const 200) (i32.const 2))
             (i32.store (i32.const 208) (i32.const 0xffff))",
            "",
            "`process`",
        ),
    ]
}
