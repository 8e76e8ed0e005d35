// The network of net.wasm, whose neurons follow their input. Counts are those of the page's drawing and of each layer.
class Net {
  constructor(instance, facts) {
    this.wasm = instance.exports;
    this.facts = facts;
    const bytes = this.wasm.memory.buffer, free = this.wasm.__heap_base.value;
    const inputs = facts.samples[0].length;
    this.changes = new Int8Array(bytes, free, inputs);
    const at = (free + inputs + 7) & ~7;
    this.sums = new Int32Array(bytes, at, facts.sums);
    this.logits = new Float32Array(bytes, at + 4 * facts.sums, facts.sums);
    this.shown = new Uint8Array(inputs);
    const sizes = Object.values(facts.layers).map(([h, w, c]) => h * w * c);
    this.counts = sizes.map((n) => new Uint8Array(n));
    this.moves = new Int8Array(bytes, this.wasm.net_moves.value, sizes.reduce((a, b) => a + b));
  }

  // One step after a jump to these counts of the input; returns how many neurons and inputs moved.
  step(target) {
    this.changes.forEach((_, k) => (this.changes[k] = target[k] - this.shown[k]));
    this.shown.set(target);
    const moved = this.wasm.net_step(this.changes.byteOffset, this.sums.byteOffset);
    let n = 0;
    for (const layer of this.counts) for (let k = 0; k < layer.length; ++k) layer[k] += this.moves[n++];
    this.wasm.net_logits(this.sums.byteOffset, this.logits.byteOffset);
    return moved;
  }

  // The SHA-256 of the logits' bytes, in hexadecimal.
  async hash() {
    const bytes = new Uint8Array(this.logits.buffer.slice(this.logits.byteOffset, this.logits.byteOffset + 4 * this.facts.sums));
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }
}

if (typeof module !== "undefined") module.exports = Net;
