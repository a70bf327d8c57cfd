//! Modules written in Rust and linked in: the same fold without WebAssembly.
//!
//! For benchmarks, which show the native fold beside the one of components, and for simulations and
//! tests, which want guests that are quick, or wrong on purpose. A native module is "published" by
//! bytes that stand for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use truthdb_module::{Halt, InstanceContext, Limits, Manifest, WasiProfile};

use crate::guest::{Guest, Inspected, Program, Runtime};

/// Makes guests of one native module.
pub trait NativeCode: Send + Sync + 'static {
    /// What the module says about itself.
    fn manifest(&self) -> Manifest;

    /// A guest with fresh memory.
    ///
    /// # Errors
    /// Why it cannot be made.
    fn guest(&self, context: &InstanceContext) -> Result<Box<dyn Guest>, Halt>;
}

/// A runtime that knows its modules beforehand.
#[derive(Default)]
pub struct NativeRuntime {
    codes: BTreeMap<Vec<u8>, Arc<dyn NativeCode>>,
}

struct NativeProgram {
    code: Arc<dyn NativeCode>,
    manifest: Manifest,
}

impl std::fmt::Debug for NativeRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NativeRuntime")
            .field("codes", &self.codes.len())
            .finish()
    }
}

impl NativeRuntime {
    /// Adds a module, published by these bytes.
    #[must_use]
    pub fn with(mut self, bytes: &[u8], code: impl NativeCode) -> NativeRuntime {
        self.codes.insert(bytes.to_vec(), Arc::new(code));
        self
    }

    fn code(&self, bytes: &[u8]) -> Result<Arc<dyn NativeCode>, String> {
        let code = self.codes.get(bytes).cloned();
        code.ok_or_else(|| "these bytes stand for no native module".to_owned())
    }
}

impl Runtime for NativeRuntime {
    fn inspect(&self, wasm: &[u8]) -> Result<Inspected, String> {
        let manifest = self.code(wasm)?.manifest();
        manifest.check()?;
        Ok(Inspected {
            bytes: Bytes::copy_from_slice(wasm),
            hash: *blake3::hash(wasm).as_bytes(),
            manifest,
        })
    }

    fn load(
        &self,
        wasm: &[u8],
        _limits: &Limits,
        _wasi: WasiProfile,
    ) -> Result<Arc<dyn Program>, String> {
        let code = self.code(wasm)?;
        let manifest = code.manifest();
        Ok(Arc::new(NativeProgram { code, manifest }))
    }

    fn semantics_id(&self, limits: &Limits) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("truthdb native runtime 1");
        for (name, value) in limits.fields() {
            hasher.update(name.as_bytes());
            hasher.update(&value.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

impl Program for NativeProgram {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn instantiate(&self, context: &InstanceContext) -> Result<Box<dyn Guest>, Halt> {
        self.code.guest(context)
    }
}
