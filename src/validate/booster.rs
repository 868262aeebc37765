//! The WebAssembly module that accepts or refuses payloads (docs/protocol.md#wasm).
//!
//! Guarantees: a module has no imports, so it cannot read files, clocks or sockets. Each call gets a fresh instance. Its
//! instructions, its memory and its stack are bounded. Whatever a module does ends as "accepted" or "refused".

use thiserror::Error;

#[cfg(feature = "wasm")]
use self::module::WasmModule;

/// Maximum size of a module in bytes: 4 MiB.
pub const MAX_MODULE_BYTES: usize = 4 << 20;

/// What examines the bytes of a payload.
#[derive(Debug, Default)]
pub enum Booster {
    /// The embedded default: a payload must not be empty.
    #[default]
    Embedded,
    /// A module of the operator.
    #[cfg(feature = "wasm")]
    Module(WasmModule),
}

/// Why a module cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BoosterError {
    /// The binary was built without wasmi.
    #[error("this binary was built without the feature `wasm`: build it with `--features wasm`, or leave the flag out")]
    NoFeature,
    /// More than 4 MiB.
    #[error("the module has more than {MAX_MODULE_BYTES} bytes (4 MiB)")]
    TooLong,
    /// It is not a module, or not one with the documented exports and without imports.
    #[error("{0}; a module exports `memory` and `validate(ptr: i32, len: i32) -> i32`, and has no imports")]
    Unfit(String),
}

impl Booster {
    /// Compiles a module and checks that it fits.
    ///
    /// # Errors
    /// [`BoosterError`]
    pub fn load(file: &[u8]) -> Result<Booster, BoosterError> {
        if file.len() > MAX_MODULE_BYTES {
            return Err(BoosterError::TooLong);
        }
        #[cfg(feature = "wasm")]
        let booster = WasmModule::load(file).map(Booster::Module).map_err(BoosterError::Unfit);
        #[cfg(not(feature = "wasm"))]
        let booster = Err(BoosterError::NoFeature);
        booster
    }

    /// Returns whether a call can take longer than a few microseconds.
    pub(super) fn may_block(&self) -> bool {
        !matches!(self, Booster::Embedded)
    }

    /// Examines a payload, a JSON text.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn examine(&self, json: &[u8]) -> Result<(), &'static str> {
        match self {
            Booster::Embedded if json.trim_ascii().is_empty() => Err("the payload is empty"),
            Booster::Embedded => Ok(()),
            #[cfg(feature = "wasm")]
            Booster::Module(module) => module.examine(json),
        }
    }
}

#[cfg(feature = "wasm")]
mod module {
    use wasmi::{Config, Engine, Instance, Memory, Module, Store, StoreLimits, StoreLimitsBuilder, TypedFunc};

    /// Fuel of a call: about one unit for each instruction, so some 50 ms.
    const BASE_FUEL: u64 = 10_000_000;
    /// Further fuel for each byte of the payload.
    const FUEL_PER_BYTE: u64 = 200;
    /// Maximum bytes of the memory of an instance: 16 MiB.
    const MAX_MEMORY_BYTES: usize = 16 << 20;
    /// Maximum number of elements of its table.
    const MAX_TABLE_ELEMENTS: usize = 10_000;
    /// Maximum number of nested calls in an instance.
    const MAX_RECURSION: usize = 1_000;
    /// Maximum bytes of the stack of an instance.
    const MAX_STACK_BYTES: usize = 1 << 20;
    /// Bytes of a page of memory.
    const PAGE_BYTES: u64 = 64 << 10;

    /// A module that has been checked.
    #[derive(Debug)]
    pub struct WasmModule {
        engine: Engine,
        module: Module,
    }

    impl WasmModule {
        pub(super) fn load(file: &[u8]) -> Result<WasmModule, String> {
            let mut config = Config::default();
            config
                .consume_fuel(true)
                .wasm_memory64(false)
                .wasm_multi_memory(false)
                .set_max_recursion_depth(MAX_RECURSION)
                .set_max_stack_height(MAX_STACK_BYTES)
                .set_max_cached_stacks(2)
                .ignore_custom_sections(true);
            let engine = Engine::new(&config);
            // Only the binary format: text is no module.
            let module = match file {
                [b'\0', b'a', b's', b'm', ..] => {
                    Module::new(&engine, file).map_err(|error| format!("not valid: {error}"))?
                }
                _ => return Err("not a WebAssembly module".to_owned()),
            };
            if let Some(import) = module.imports().next() {
                return Err(format!("it imports `{}` of `{}`", cut(import.name()), cut(import.module())));
            }
            let module = WasmModule { engine, module };
            module.instantiate(0).map_err(|reason| format!("it does not start: {reason}"))?;
            Ok(module)
        }

        pub(super) fn examine(&self, json: &[u8]) -> Result<(), &'static str> {
            let (mut store, memory, validate) = self.instantiate(json.len()).map_err(|_| "the module did not start")?;
            let pages = (json.len() as u64).div_ceil(PAGE_BYTES).max(1);
            let no_memory = "the module has no memory left for the payload";
            let old_pages = memory.grow(&mut store, pages).map_err(|_| no_memory)?;
            let pointer = usize::try_from(old_pages * PAGE_BYTES).map_err(|_| no_memory)?;
            memory.write(&mut store, pointer, json).map_err(|_| no_memory)?;
            let (pointer, length) = (i32::try_from(pointer), i32::try_from(json.len()));
            let (Ok(pointer), Ok(length)) = (pointer, length) else { return Err(no_memory) };
            match validate.call(&mut store, (pointer, length)) {
                Ok(0) => Err("the module refused the payload"),
                Ok(_) => Ok(()),
                Err(_) => Err("the module failed or used up its budget"),
            }
        }

        /// Returns a fresh instance with the budget for a payload of this many bytes.
        #[expect(clippy::type_complexity, reason = "the parts of an instance")]
        fn instantiate(
            &self,
            payload_bytes: usize,
        ) -> Result<(Store<StoreLimits>, Memory, TypedFunc<(i32, i32), i32>), String> {
            let limits = StoreLimitsBuilder::new()
                .memory_size(MAX_MEMORY_BYTES)
                .table_elements(MAX_TABLE_ELEMENTS)
                .instances(1)
                .memories(1)
                .tables(4)
                .build();
            let mut store = Store::new(&self.engine, limits);
            store.limiter(|limits| limits);
            let fuel = BASE_FUEL + FUEL_PER_BYTE * payload_bytes as u64;
            store.set_fuel(fuel).map_err(|error| error.to_string())?;
            let instance = Instance::new(&mut store, &self.module, &[]).map_err(|error| error.to_string())?;
            let memory = instance.get_memory(&store, "memory").ok_or("it exports no `memory`")?;
            let validate = instance.get_typed_func(&store, "validate").map_err(|_| "it exports no such `validate`")?;
            Ok((store, memory, validate))
        }
    }

    fn cut(text: &str) -> String {
        text.chars().take(50).collect()
    }
}

#[cfg(test)]
mod tests;
