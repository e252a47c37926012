// Tensors in host memory. A rank computes into memory of its own once all ranks have come, and writes what it received once all have
// computed, so nobody reads what another has overwritten.

static float half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023, bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000 | fraction << 13;
  } else if (exponent) {
    bits = sign | (exponent + 112) << 23 | fraction << 13;
  } else {
    float small = (float)fraction / 16777216.0f;
    return sign ? -small : small;
  }
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

// To nearest even, by the compiler's own type.
static uint16_t float_to_half(float f) {
  _Float16 h = (_Float16)f;
  uint16_t bits;
  memcpy(&bits, &h, 2);
  return bits;
}

static float number(const void* p, int type, size_t i) {
  if (type == F32) return ((const float*)p)[i];
  uint16_t h = ((const uint16_t*)p)[i];
  if (type == F16) return half_to_float(h);
  uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static void store(void* p, int type, size_t i, float f) {
  if (type == F32) {
    ((float*)p)[i] = f;
  } else if (type == F16) {
    ((uint16_t*)p)[i] = float_to_half(f);
  } else {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    ((uint16_t*)p)[i] = f != f ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
}

static size_t width(int type);
static const Item* sent(Op* op, int from, int to);

static int compute(World* w, Op* op, int rank) {
  Part* mine = &op->part[rank];
  for (int i = 0; i < mine->items; i++) {
    Item* item = &mine->item[i];
    size_t bytes = item->count * width(item->type);
    if (item->kind == GATHER) {
      char* to = mine->result[i] = malloc(bytes * w->size + 1);
      for (int r = 0; r < w->size; r++) memcpy(to + r * bytes, op->part[r].item[i].send, bytes);
    } else if (item->kind == RECV) {
      const Item* from = sent(op, item->peer, rank);
      if (!from || from->count != item->count || from->type != item->type) return IN_PROGRESS;
      memcpy(mine->result[i] = malloc(bytes + 1), from->send, bytes);
    } else if (item->kind != SEND) {
      size_t first = item->kind == SCATTER ? rank * item->count : 0;
      void* to = mine->result[i] = malloc(bytes + 1);
      for (size_t n = 0; n < item->count; n++) {
        float total = 0;
        for (int r = 0; r < w->size; r++) total += number(op->part[r].item[i].send, item->type, first + n);
        store(to, item->type, n, total);
      }
    }
  }
  return SUCCESS;
}

static void deliver(Op* op, int rank) {
  Part* mine = &op->part[rank];
  for (int i = 0; i < mine->items; i++) {
    Item* item = &mine->item[i];
    if (!mine->result[i]) continue;
    size_t ranks = 1;
    if (item->kind == GATHER)
      for (ranks = 0; ranks < MOST_RANKS && op->part[ranks].submitted; ranks++) {}
    memcpy(item->recv, mine->result[i], item->count * width(item->type) * ranks);
    free(mine->result[i]);
    mine->result[i] = NULL;
  }
}
