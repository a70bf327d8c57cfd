/* Balances of accounts, in C without a library: see ../README.md for what it does.
 *
 * The functions of the world `processor` are called and exported with the canonical ABI of the component
 * model: a list is a pointer and a length, a result that does not fit a register is written behind a
 * pointer. `wasm-tools component embed` puts the description of the world beside the code.
 *
 * Memory is an arena that ends with the call: only tables are state. */

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

typedef struct { u8 *at; u32 bytes; } list;
typedef struct { u32 is_some; list value; } option_list;
typedef struct { u32 *ends; u32 ends_count; u8 *data; u32 bytes; u8 more; } page;

#define IMPORT(module, name) __attribute__((import_module("truthdb:module/" module "@0.1.0"), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))

IMPORT("state-read", "get")
void host_get(u32 table, const u8 *key, u32 key_bytes, option_list *out);
IMPORT("state-read", "scan")
void host_scan(u32 table, const u8 *start, u32 start_bytes, u32 has_end, const u8 *end, u32 end_bytes,
               u32 limit, u32 reverse, page *out);
IMPORT("state-write", "set")
void host_set(u32 table, const u8 *key, u32 key_bytes, const u8 *value, u32 value_bytes);
IMPORT("state-write", "delete")
u32 host_delete(u32 table, const u8 *key, u32 key_bytes);
IMPORT("emit", "emit")
void host_emit(u32 source, const u8 *stream, u32 stream_bytes, const u8 *type, u32 type_bytes,
               const u8 *content, u32 content_bytes, const u8 *payload, u32 payload_bytes);

/* The arena begins where the linker's data ends, and grows with the memory. */
extern u8 __heap_base;
static u8 *top = &__heap_base;

static void *take(u32 bytes) {
    u8 *at = (u8 *)(((u32)top + 7) & ~7u);
    u32 end = (u32)at + bytes;
    u32 have = (u32)__builtin_wasm_memory_size(0) << 16;
    if (end < (u32)at || (end > have && __builtin_wasm_memory_grow(0, ((end - have) >> 16) + 1) == -1ul))
        __builtin_trap();
    top = (u8 *)end;
    return at;
}

EXPORT("cabi_realloc")
void *cabi_realloc(void *old, u32 old_bytes, u32 align, u32 bytes) {
    (void)align;
    u8 *at = take(bytes);
    for (u32 i = 0; i < old_bytes && i < bytes; i++) at[i] = ((u8 *)old)[i];
    return at;
}

#define TEXT(literal) { (u8 *)(literal), sizeof(literal) - 1 }

typedef struct { list stream, type; } subscription;
typedef struct { list name; u32 version; list module; } table_decl;
typedef struct {
    list name, version;
    u32 abi;
    u8 kind;
    const subscription *subscriptions;
    u32 subscriptions_count;
    const table_decl *tables;
    u32 tables_count;
} manifest;

enum { DEPOSIT, WITHDRAW, CLOSE, AUDIT };
enum { ACCOUNTS, TOTALS };

static const subscription SUBSCRIPTIONS[] = {
    { TEXT("account-*"), TEXT("deposit") },
    { TEXT("account-*"), TEXT("withdraw") },
    { TEXT("account-*"), TEXT("close") },
    { TEXT("audit"), TEXT("run") },
};
static const table_decl TABLES[] = {
    { TEXT("accounts"), 1, TEXT("") },
    { TEXT("totals"), 1, TEXT("") },
};
static const manifest MANIFEST = {
    TEXT("balance"), TEXT("0.1.0"), 1, /* processor */ 2, SUBSCRIPTIONS, 4, TABLES, 2,
};

EXPORT("describe")
const manifest *describe(void) { return &MANIFEST; }

/* ok, or an error with a text */
typedef struct { u8 is_error; list reason; } outcome;
static outcome answer;

static const outcome *done(void) {
    top = &__heap_base;
    answer.is_error = 0;
    return &answer;
}

static const outcome *fault(list subject, const char *reason, u32 reason_bytes) {
    static u8 text[512];
    u32 bytes = 0;
    for (u32 i = 0; i < subject.bytes && bytes < 300; i++) text[bytes++] = subject.at[i];
    for (u32 i = 0; i < reason_bytes; i++) text[bytes++] = (u8)reason[i];
    top = &__heap_base;
    answer.is_error = 1;
    answer.reason = (list){ text, bytes };
    return &answer;
}

/* Names of streams hold no control characters, so none of their bytes is 0. */
static list key_of(list name) {
    u8 *key = take(name.bytes + 2);
    for (u32 i = 0; i < name.bytes; i++) key[i] = name.at[i];
    key[name.bytes] = key[name.bytes + 1] = 0;
    return (list){ key, name.bytes + 2 };
}

static void write_le(u8 *out, u64 value, u32 bytes) {
    for (u32 i = 0; i < bytes; i++) out[i] = (u8)(value >> (8 * i));
}

static u64 read_le(const u8 *in, u32 bytes) {
    u64 value = 0;
    for (u32 i = 0; i < bytes; i++) value |= (u64)in[i] << (8 * i);
    return value;
}

static int parse(list text, i64 *amount) {
    u64 value = 0;
    if (text.bytes == 0) return 0;
    for (u32 i = 0; i < text.bytes; i++) {
        if (text.at[i] < '0' || text.at[i] > '9') return 0;
        value = value * 10 + (text.at[i] - '0');
        if (value > 0xffffffffull) return 0;
    }
    *amount = (i64)value;
    return 1;
}

static void alert(u32 source, list name, i64 balance) {
    u8 *text = take(name.bytes + 22);
    u32 bytes = 0;
    for (; bytes < name.bytes; bytes++) text[bytes] = name.at[bytes];
    text[bytes++] = ' ';
    text[bytes++] = '-';
    u8 digits[20];
    u32 count = 0;
    for (u64 rest = 0ull - (u64)balance; rest > 0; rest /= 10) digits[count++] = (u8)('0' + rest % 10);
    while (count > 0) text[bytes++] = digits[--count];
    host_emit(source, (u8 *)"alerts", 6, (u8 *)"overdrawn", 9, (u8 *)"text/plain", 10, text, bytes);
}

static void move_by(u32 source, list name, i64 amount) {
    list key = key_of(name);
    option_list old;
    host_get(ACCOUNTS, key.at, key.bytes, &old);
    i64 balance = 0;
    u32 movements = 0;
    if (old.is_some & 1) {
        balance = (i64)read_le(old.value.at, 8);
        movements = (u32)read_le(old.value.at + 8, 4);
    }
    balance += amount;
    u8 value[12];
    write_le(value, (u64)balance, 8);
    write_le(value + 8, movements + 1, 4);
    host_set(ACCOUNTS, key.at, key.bytes, value, 12);
    if (balance < 0) alert(source, name, balance);
}

static void audit(void) {
    u64 accounts = 0;
    i64 sum = 0;
    list start = { 0, 0 };
    page rows;
    do {
        host_scan(ACCOUNTS, start.at, start.bytes, 0, 0, 0, 100, 0, &rows);
        u32 begin = 0;
        for (u32 row = 0; row < rows.ends_count / 2; row++) {
            u32 key_end = rows.ends[2 * row];
            sum += (i64)read_le(rows.data + key_end, 8);
            accounts++;
            if (row + 1 == rows.ends_count / 2) {
                /* The next page begins right after this key. */
                u32 bytes = key_end - begin;
                u8 *after = take(bytes + 1);
                for (u32 i = 0; i < bytes; i++) after[i] = rows.data[begin + i];
                after[bytes] = 0;
                start = (list){ after, bytes + 1 };
            }
            begin = rows.ends[2 * row + 1];
        }
    } while (rows.more);
    double mean = accounts > 0 ? (double)sum / (double)accounts : 0.0;
    u8 value[24];
    write_le(value, accounts, 8);
    write_le(value + 8, (u64)sum, 8);
    union { double number; u64 bits; } bits = { mean };
    write_le(value + 16, bits.bits, 8);
    host_set(TOTALS, 0, 0, value, 24);
}

EXPORT("process")
const outcome *process(const u64 *sequences, u32 count, const u64 *times, u32 times_count,
                       const u64 *revisions, u32 revisions_count, const u32 *kinds, u32 kinds_count,
                       const u32 *ends, u32 ends_count, u8 *data, u32 bytes) {
    (void)sequences, (void)times, (void)times_count, (void)revisions, (void)revisions_count;
    (void)kinds_count, (void)ends_count, (void)bytes;
    for (u32 event = 0; event < count; event++) {
        u32 begin = event == 0 ? 0 : ends[5 * event - 1];
        list stream = { data + begin, ends[5 * event] - begin };
        list payload = { data + ends[5 * event + 3], ends[5 * event + 4] - ends[5 * event + 3] };
        i64 amount = 0;
        switch (kinds[event]) {
        case DEPOSIT:
        case WITHDRAW:
            if (!parse(payload, &amount)) return fault(payload, " is no amount", 13);
            move_by(event, stream, kinds[event] == DEPOSIT ? amount : -amount);
            break;
        case CLOSE: {
            list key = key_of(stream);
            if (!host_delete(ACCOUNTS, key.at, key.bytes)) return fault(stream, " is not open", 12);
            break;
        }
        case AUDIT:
            audit();
            break;
        default:
            __builtin_trap();
        }
    }
    return done();
}

EXPORT("migrate")
const outcome *migrate(u8 *name, u32 name_bytes, u8 *version, u32 version_bytes, u32 abi, u32 kind,
                       void *subscriptions, u32 subscriptions_count, void *tables, u32 tables_count) {
    (void)name, (void)name_bytes, (void)version, (void)version_bytes, (void)abi, (void)kind;
    (void)subscriptions, (void)subscriptions_count, (void)tables, (void)tables_count;
    return done();
}
