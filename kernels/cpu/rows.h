// Lines as vectors, and rows of tensors: what the files of rows have in common.
//
// Those files are compiled once for each vector width; see elementwise_avx2.cpp and
// elementwise_avx512.cpp, which say for what before they include them. (GCC takes vectors apart
// before it inlines, so that a function must be compiled for the width that its caller has.)

namespace fastres {
namespace {

int blocks(const fr_tensor &tensor, int dtype) {
    const int lanes = dtype == FR_FLOAT32 ? 16 : dtype == FR_BFLOAT16 ? 32 : 64;
    return (tensor.channels + lanes - 1) / lanes;
}

// A line's lanes that have a channel; the others are kept at zero.
template <int DTYPE>
FR_INLINE int lanes_of(const fr_tensor &tensor, int block) {
    return std::min<int>(Number<DTYPE>::kLanes, tensor.channels - block * Number<DTYPE>::kLanes);
}

// 16 numbers; the compiler splits them where registers are shorter.
typedef Vectors<16>::Float Lanes;
typedef Vectors<16>::Int Integers;
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint8_t LineOfBytes __attribute__((vector_size(64)));

// A line as vectors of float32: one, or of bfloat16 two.
template <int DTYPE>
constexpr int kVectors = Number<DTYPE>::kLanes / 16;

template <int DTYPE>
FR_INLINE void load(const char *line, int vector, Lanes &to) {
    if (DTYPE == FR_FLOAT32) {
        std::memcpy(&to, line, 64);
    } else {
        Halves halves;
        std::memcpy(&halves, line + vector * 32, 32);
        const Bits bits = __builtin_convertvector(halves, Bits) << 16;
        std::memcpy(&to, &bits, 64);
    }
}

// Half to even, as Number<FR_BFLOAT16>::store. Like the convolutions', the processor's own
// instruction takes numbers below 2^-126 for zero.
template <int DTYPE>
FR_INLINE void store(char *line, int vector, const Lanes &from) {
    if (DTYPE == FR_FLOAT32) {
        std::memcpy(line, &from, 64);
    } else {
#ifdef FR_STORES_BFLOAT16
        const __m256bh halves = _mm512_cvtneps_pbh((__m512)from);
        std::memcpy(line + vector * 32, &halves, 32);
#else
        Bits bits;
        std::memcpy(&bits, &from, 64);
        const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
        const Halves halves =
            __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded, Halves);
        std::memcpy(line + vector * 32, &halves, 32);
#endif
    }
}

// 16 uint8 of a line, less their zero.
FR_INLINE void load_integers(const char *line, int vector, int32_t zero, Integers &to) {
    Bytes bytes;
    std::memcpy(&bytes, line + vector * 16, 16);
    to = __builtin_convertvector(bytes, Integers) - zero;
}

// Numbers in the output's unit, rounded half to even, the zero added, within what uint8 holds.
FR_INLINE void quantize(const Lanes &numbers, int32_t zero, Integers &q) {
    // Beyond these the sum with a zero, which is 0 to 255, is the least or the most anyway.
    const Lanes least = Lanes{} - 1024.0f, most = Lanes{} + 1024.0f;
    Lanes x = numbers < least ? least : numbers;
    x = x > most ? most : x;
    const float even = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to whole numbers
    x = (x + even) - even;
    q = __builtin_convertvector(x, Integers) + zero;
    const Integers none = {}, all = none + 255;
    q = q < none ? none : q;
    q = q > all ? all : q;
}

FR_INLINE void store_bytes(char *line, int vector, const Integers &q) {
    const Bytes bytes = __builtin_convertvector(q, Bytes);
    std::memcpy(line + vector * 16, &bytes, 16);
}

// Where the row of all channel blocks begins that a chunk is, of a tensor as high as the output.
FR_INLINE char *whole_row(const Work &work, const fr_tensor &tensor, int64_t chunk) {
    return work.at(tensor) + chunk / tensor.height * tensor.image +
           chunk % tensor.height * tensor.row;
}

// One row of one channel block of one image: a chunk of what is as large as its output.
template <int DTYPE>
struct Row {
    int64_t image;
    int block, row;

    FR_INLINE Row(const fr_tensor &output, int64_t chunk) {
        const int height = output.height, count = blocks(output, DTYPE);
        row = (int)(chunk % height);
        block = (int)(chunk / height % count);
        image = chunk / height / count;
    }
    // Where the block begins in a tensor, and where the row does.
    FR_INLINE char *plane(const Work &work, const fr_tensor &tensor) const {
        return work.at(tensor) + image * tensor.image + block * tensor.plane;
    }
    FR_INLINE char *line(const Work &work, const fr_tensor &tensor) const {
        return plane(work, tensor) + row * tensor.row;
    }
};

}  // namespace
}  // namespace fastres
